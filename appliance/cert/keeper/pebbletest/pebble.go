// Package pebbletest runs Pebble, the ACME server that Let's Encrypt makes for tests, inside a test.
package pebbletest

import (
	"bytes"
	"encoding/pem"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Server is a running Pebble. It validates at the ports it was given.
type Server struct {
	Directory string
	Roots     string // PEM that vouches for the server itself
	store     *db.MemoryStore

	mu  sync.Mutex
	out bytes.Buffer
}

// DirectoryPath is where the directory is.
const DirectoryPath = wfe.DirectoryPath

// settle keeps requests for an order away from its completion, which takes
// milliseconds: Pebble 2.10 locks an order for reading twice, and hangs for good
// if the completion wants to write between the two.
const settle = 300 * time.Millisecond

// Handler is a Pebble that looks at these ports for http-01 and tls-alpn-01,
// and whose certificates live for a number of seconds.
func Handler(plain, tls int, seconds uint64, log *log.Logger) (http.Handler, *db.MemoryStore, error) {
	for name, value := range map[string]string{
		"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0",
		"PEBBLE_AUTHZREUSE": "0", // each order is proved anew
	} {
		if err := os.Setenv(name, value); err != nil {
			return nil, nil, err
		}
	}
	store := db.NewMemoryStore()
	issuer := ca.New(log, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default", ValidityPeriod: seconds}})
	front := wfe.New(log, store, va.New(log, plain, tls, false, "", store), issuer, []string{"pebble.letsencrypt.org"}, false, false, 1, 1)
	handler := front.Handler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/my-order/") {
			time.Sleep(settle)
		}
		handler.ServeHTTP(w, r)
	}), store, nil
}

// Start runs one that looks for challenges at these addresses' ports.
func Start(t testing.TB, plain, tls net.Addr, seconds uint64) *Server {
	t.Helper()
	s := &Server{}
	logger := log.New(s, "", 0)
	h, store, err := Handler(port(t, plain), port(t, tls), seconds, logger)
	if err != nil {
		t.Fatal(err)
	}
	s.store = store
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = logger
	server.StartTLS()
	t.Cleanup(func() { server.Config.Close() }) // does not wait for a handler that hangs
	s.Directory = server.URL + DirectoryPath
	s.Roots = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return s
}

func port(t testing.TB, a net.Addr) int {
	t.Helper()
	_, p, err := net.SplitHostPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Revoked says whether the certificate was revoked.
func (s *Server) Revoked(der []byte) bool {
	return s.store.GetRevokedCertificateByDER(der) != nil
}

// Write is the server's log.
func (s *Server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

// Log is what the server said.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// Plain serves what port 80 would answer to challenges.
func Plain(t testing.TB, h http.Handler) net.Addr {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr()
}
