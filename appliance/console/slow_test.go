package console

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"gatehouse/appliance/console/consoletest"
)

// from makes a client with an address of its own on the loopback.
func from(t *testing.T, address string) *http.Client {
	t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	tr := &http.Transport{DialContext: d.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func statusOf(t *testing.T, c *http.Client, url string) int {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// A stranger who begins forms and does not end them must not keep others out.
func TestSlowFormsOfOneSourceHoldNobodyElseUp(t *testing.T) {
	b, _ := consoletest.Owned(t, Run)
	host := strings.TrimPrefix(b.URL, "https://")
	for range 80 {
		c, err := tls.Dial("tcp", host, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "POST /sign-in HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ne", host)
	}
	slow, other := from(t, "127.0.0.1"), from(t, "127.0.0.2")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	for statusOf(t, slow, b.URL+"/sign-in") != http.StatusServiceUnavailable {
		select {
		case <-ctx.Done():
			t.Fatal("the slow forms are not held yet: nothing is tested")
		case <-time.After(20 * time.Millisecond):
		}
	}
	if got := statusOf(t, other, b.URL+"/sign-in"); got != http.StatusOK {
		t.Errorf("somebody else gets %d", got)
	}
}
