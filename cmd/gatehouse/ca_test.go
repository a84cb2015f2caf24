package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatehouse/appliance/cert/authority"
	"gatehouse/appliance/cert/certtest"
)

func exitOf(err error) exitCode {
	var f *failure
	if errors.As(err, &f) {
		return f.code
	}
	return exitFailure
}

// rootPEM is what a box that was taken over may send.
func rootPEM(t *testing.T, change func(*x509.Certificate)) []byte {
	t.Helper()
	_, private, _ := net.ParseCIDR("10.0.0.0/8")
	root, _ := certtest.PEM(t, certtest.Self(t, func(c *x509.Certificate) {
		c.IsCA, c.MaxPathLenZero, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		c.PermittedDNSDomainsCritical, c.PermittedDNSDomains, c.PermittedIPRanges = true, []string{"box", "box.local"}, []*net.IPNet{private}
		c.PermittedEmailAddresses, c.PermittedURIDomains = []string{"nobody@gatehouse.invalid"}, []string{"gatehouse.invalid"}
	}, change))
	return root
}

func cidr(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func TestNET10_ARootForTheWorldIsNotInstalled(t *testing.T) {
	good := func(*x509.Certificate) {}
	if _, err := checkRoot(rootPEM(t, good), "box", nil); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"nothing":     nil,
		"a key":       []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"two":         append(rootPEM(t, good), rootPEM(t, good)...),
		"unlimited":   rootPEM(t, func(c *x509.Certificate) { c.PermittedDNSDomains = nil }),
		"any address": rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = nil }),
		"0.0.0.0/0":   rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("0.0.0.0/0")) }),
		"::/0":        rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("::/0")) }),
		"8.8.8.8":     rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("8.8.8.8/32")) }),
		"10.0.0.0/4":  rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("0.0.0.0/4")) }),
		"10.0.0.0/7":  rootPEM(t, func(c *x509.Certificate) { c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("10.0.0.0/7")) }),
		"a base that is not masked": rootPEM(t, func(c *x509.Certificate) {
			c.PermittedIPRanges = append(c.PermittedIPRanges, &net.IPNet{IP: net.IP{172, 16, 0, 0}, Mask: net.CIDRMask(7, 32)})
		}),
		"programs":        rootPEM(t, func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }),
		"anything":        rootPEM(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil }),
		"signatures, too": rootPEM(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageDigitalSignature }),
		"mail":            rootPEM(t, func(c *x509.Certificate) { c.PermittedEmailAddresses = nil }),
		"mail of a bank": rootPEM(t, func(c *x509.Certificate) {
			c.PermittedEmailAddresses = append(c.PermittedEmailAddresses, "bank.example")
		}),
		"URIs":          rootPEM(t, func(c *x509.Certificate) { c.PermittedURIDomains = nil }),
		"com":           rootPEM(t, func(c *x509.Certificate) { c.PermittedDNSDomains = append(c.PermittedDNSDomains, "com") }),
		"bank":          rootPEM(t, func(c *x509.Certificate) { c.PermittedDNSDomains = append(c.PermittedDNSDomains, "bank.example") }),
		"not critical":  rootPEM(t, func(c *x509.Certificate) { c.PermittedDNSDomainsCritical = false }),
		"further CAs":   rootPEM(t, func(c *x509.Certificate) { c.MaxPathLenZero, c.MaxPathLen = false, 3 }),
		"not a root":    rootPEM(t, func(c *x509.Certificate) { c.IsCA, c.MaxPathLenZero = false, false }),
		"another's box": rootPEM(t, func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"other"} }),
	} {
		if _, err := checkRoot(b, "box", nil); exitOf(err) != exitVerification {
			t.Errorf("%s: %v, want exit 7", name, err)
		}
	}
	more := rootPEM(t, func(c *x509.Certificate) {
		c.PermittedDNSDomains = append(c.PermittedDNSDomains, "gate.example.net")
		c.PermittedIPRanges = append(c.PermittedIPRanges, cidr("203.0.113.7/32"))
	})
	if _, err := checkRoot(more, "box", []string{"gate.example.net", "203.0.113.7"}); err != nil {
		t.Errorf("what the person named: %v", err)
	}
	a, err := authority.New("box", []string{"box", "box.local"}, []netip.Addr{netip.MustParseAddr("192.168.1.40")})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := checkRoot(a.PEM(), "box", nil); err != nil || r.fingerprint() != a.Fingerprint() {
		t.Errorf("what a box makes: %v", err)
	}
}

// testMachine keeps what would be run.
func testMachine(t *testing.T, system string, ran *[]string, fail *error) machine {
	t.Helper()
	return machine{system: system, root: t.TempDir(), run: func(_ context.Context, name string, args ...string) error {
		*ran = append(*ran, strings.Join(append([]string{name}, args...), " "))
		return *fail
	}}
}

func TestNET10_TrustOnLinux(t *testing.T) {
	root, err := checkRoot(rootPEM(t, func(*x509.Certificate) {}), "box", nil)
	if err != nil {
		t.Fatal(err)
	}
	for folder, c := range map[string]struct{ file, run string }{
		"/usr/local/share/ca-certificates":          {"gatehouse-ca-box.crt", "update-ca-certificates"},
		"/etc/pki/ca-trust/source/anchors":          {"gatehouse-ca-box.pem", "update-ca-trust extract"},
		"/etc/ca-certificates/trust-source/anchors": {"gatehouse-ca-box.crt", "trust extract-compat"},
	} {
		var ran []string
		var fail error
		m := testMachine(t, "linux", &ran, &fail)
		if err := changeTrust(t.Context(), m, "box", root, false, new(bytes.Buffer)); err == nil {
			t.Error("a system without any of the folders was changed")
		}
		if err := os.MkdirAll(m.root+folder, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(m.root+folder, c.file)
		if err := changeTrust(t.Context(), m, "box", root, true, new(bytes.Buffer)); exitOf(err) != exitNotFound {
			t.Errorf("%s: removing what is not there: %v", folder, err)
		}
		fail = errors.New("exit status 1")
		if err := changeTrust(t.Context(), m, "box", root, false, new(bytes.Buffer)); err == nil {
			t.Errorf("%s: the system's tool failed, and nothing is said", folder)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: half done", folder)
		}
		ran, fail = nil, nil
		var out bytes.Buffer
		if err := changeTrust(t.Context(), m, "box", root, false, &out); err != nil || !strings.Contains(out.String(), root.fingerprint()) {
			t.Errorf("%s: %v %s", folder, err, out.String())
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, root.pem) || !slices.Equal(ran, []string{c.run}) {
			t.Errorf("%s: %v, ran %q", folder, err, ran)
		}
		if err := changeTrust(t.Context(), m, "box", root, true, &out); err != nil || len(ran) != 2 {
			t.Errorf("%s: removing: %v, ran %q", folder, err, ran)
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: still there", folder)
		}
	}
}

func TestNET10_TrustOnMacOSAndWindows(t *testing.T) {
	root, err := checkRoot(rootPEM(t, func(*x509.Certificate) {}), "box", nil)
	if err != nil {
		t.Fatal(err)
	}
	for system, want := range map[string][]string{
		"darwin":  {"security add-trusted-cert -d -r trustRoot -p ssl -k /Library/Keychains/System.keychain ", "security delete-certificate -Z " + thumbprint(root)},
		"windows": {"certutil -addstore -f Root ", "certutil -delstore Root " + thumbprint(root)},
	} {
		var ran []string
		var fail error
		m := testMachine(t, system, &ran, &fail)
		for _, remove := range []bool{false, true} {
			if err := changeTrust(t.Context(), m, "box", root, remove, new(bytes.Buffer)); err != nil {
				t.Errorf("%s: %v", system, err)
			}
		}
		if len(ran) != 2 || !strings.HasPrefix(ran[0], want[0]) || !strings.HasPrefix(ran[1], want[1]) {
			t.Errorf("%s ran %q", system, ran)
		}
	}
	var ran []string
	var fail error
	if err := changeTrust(t.Context(), testMachine(t, "plan9", &ran, &fail), "box", root, false, new(bytes.Buffer)); err == nil || len(ran) != 0 {
		t.Errorf("an unknown system: %v", err)
	}
}

func TestFileNamesOfRoots(t *testing.T) {
	for name, want := range map[string]string{"gatehouse-7f3k": "gatehouse-ca-gatehouse-7f3k", "../../etc/x": "gatehouse-ca-etcx", "a b\n": "gatehouse-ca-ab", strings.Repeat("a", 100): "gatehouse-ca-" + strings.Repeat("a", 63)} {
		if got := fileName(name); got != want {
			t.Errorf("%q: %q", name, got)
		}
	}
}
