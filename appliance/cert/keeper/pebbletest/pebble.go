// Package pebbletest runs Pebble, the ACME server that Let's Encrypt makes for tests, inside a test.
package pebbletest

import (
	"bytes"
	"encoding/pem"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

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

// Start runs one whose certificates live for a number of seconds, and which
// looks for http-01 and tls-alpn-01 at these addresses' ports.
func Start(t testing.TB, plain, tls net.Addr, seconds uint64) *Server {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	s := &Server{store: db.NewMemoryStore()}
	logger := log.New(s, "", 0)
	issuer := ca.New(logger, s.store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default", ValidityPeriod: seconds}})
	validator := va.New(logger, port(t, plain), port(t, tls), false, "", s.store)
	front := wfe.New(logger, s.store, validator, issuer, []string{"pebble.letsencrypt.org"}, false, false, 1, 1)
	server := httptest.NewUnstartedServer(front.Handler())
	server.Config.ErrorLog = logger
	server.StartTLS()
	t.Cleanup(server.Close)
	s.Directory = server.URL + wfe.DirectoryPath
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
