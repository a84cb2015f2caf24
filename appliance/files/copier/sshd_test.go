package copier

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"gatehouse/appliance/files"
	"gatehouse/appliance/files/filestest"
	"gatehouse/appliance/files/serve"
	"gatehouse/appliance/session/wire"
)

// overSSH is the bench of a target that sshd serves, as the agent reaches it.
func overSSH(t testing.TB, sshd *filestest.SSHD) (b *bench, client func() *ssh.Client) {
	b = setup(t)
	answer := serve.Over(b.site.Config)
	var c *ssh.Client
	client = func() *ssh.Client {
		if c != nil {
			if _, _, err := c.SendRequest("keepalive@openssh.com", true, nil); err == nil {
				return c
			}
		}
		var err error
		if c, err = sshd.Dial(t.Context()); err != nil {
			t.Fatal(err)
		}
		opened := c
		t.Cleanup(func() { opened.Close() })
		return c
	}
	b.Open = func(ctx context.Context, o wire.Open) (wire.Stream, wire.Reply, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, wire.Reply{}, err
		}
		defer l.Close()
		here, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, wire.Reply{}, err
		}
		there, err := l.Accept()
		if err != nil {
			return nil, wire.Reply{}, err
		}
		ssh := client()
		go func() {
			if o, err := wire.ReadOpen(there); err == nil {
				_ = answer(context.Background(), ssh, there.(*net.TCPConn), o) // the other end judges
			}
		}()
		p, err := filestest.Ask(here.(*net.TCPConn), o)
		return here.(*net.TCPConn), p, err
	}
	return b, client
}

func TestSES4_OverSSH(t *testing.T) {
	b, client := overSSH(t, filestest.NewSSHD(t))
	filestest.Random(t, filepath.Join(b.hereDir, "file"), 60*files.Chunk+5)
	to := filepath.Join(b.there, "file")
	if _, err := b.Put(t.Context(), b.here, "file", to, ""); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(b.hereDir, "file"), to)
	// The target goes away in the middle, and is back.
	b.inTheMiddle(func() { client().Close() })
	if _, err := b.Get(t.Context(), to, b.here, "back", false); err != nil {
		t.Fatal(err)
	}
	same(t, filepath.Join(b.hereDir, "back"), to)
	if len(b.said) != 1 || !strings.Contains(b.said[0], "connection to the target was lost") {
		t.Errorf("said: %q", b.said)
	}
	// A connection that others use is not closed by a session of files that ends.
	if _, _, err := client().SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Error(err)
	}
}

// BenchmarkFile copies 1 GB to and from an OpenSSH server on loopback, beside
// what OpenSSH's own clients do, which check no hash.
func BenchmarkFile(b *testing.B) {
	const size = 1 << 30
	sshd := filestest.NewSSHD(b)
	x, _ := overSSH(b, sshd)
	from, to := filepath.Join(x.hereDir, "file"), filepath.Join(x.there, "file")
	filestest.Random(b, from, size)
	_, port, _ := net.SplitHostPort(sshd.Address)
	options := []string{"-q", "-i", sshd.KeyFile, "-oUserKnownHostsFile=" + sshd.Known, "-oBatchMode=yes", "-oPort=" + port}
	run := func(b *testing.B, program string, stdin string, args ...string) {
		cmd := exec.Command(program, append(append([]string{}, options...), args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
	at := sshd.User + "@127.0.0.1"
	for name, do := range map[string]func(b *testing.B){
		"put/gatehouse": func(b *testing.B) {
			if _, err := x.Put(b.Context(), x.here, "file", to, ""); err != nil {
				b.Fatal(err)
			}
		},
		"put/scp":  func(b *testing.B) { run(b, "scp", "", from, at+":"+to+"1") },
		"put/sftp": func(b *testing.B) { run(b, "sftp", "put "+from+" "+to+"2\n", at) },
		"get/gatehouse": func(b *testing.B) {
			if _, err := x.Get(b.Context(), to+"1", x.here, "back", false); err != nil {
				b.Fatal(err)
			}
		},
		"get/scp":  func(b *testing.B) { run(b, "scp", "", at+":"+to+"1", filepath.Join(x.hereDir, "back1")) },
		"get/sftp": func(b *testing.B) { run(b, "sftp", "get "+to+"1 "+filepath.Join(x.hereDir, "back2")+"\n", at) },
	} {
		b.Run(name, func(b *testing.B) {
			if _, err := os.Stat(to + "1"); err != nil {
				run(b, "scp", "", from, at+":"+to+"1")
				b.ResetTimer()
			}
			b.SetBytes(size)
			for range b.N {
				do(b)
			}
		})
	}
}
