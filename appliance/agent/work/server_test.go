package work

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/ssh"
)

// target is an SSH server that does what a test wants.
type target struct {
	t       *testing.T
	address string
	key     ssh.Signer
	config  *ssh.ServerConfig
	conns   atomic.Int32
	// serve runs a channel whose shell or command was asked for.
	serve     func(c ssh.Channel, command string)
	channels  int // that a connection may open; 0: any number
	listener  net.Listener
	connected func(*ssh.ServerConn)
	signalled func(name string)
}

const password = "correct horse"

// startTarget takes the password above of anybody, unless config is changed.
func startTarget(t *testing.T, serve func(ssh.Channel, string), change ...func(*target)) *target {
	t.Helper()
	key, _ := newKey(t)
	s := &target{t: t, key: key, serve: serve, config: &ssh.ServerConfig{
		PasswordCallback: func(_ ssh.ConnMetadata, p []byte) (*ssh.Permissions, error) {
			if string(p) != password {
				return nil, errors.New("no")
			}
			return nil, nil
		},
	}}
	for _, f := range change {
		f(s)
	}
	s.config.AddHostKey(s.key)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.listener, s.address = l, l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			go s.connection(c)
		}
	}()
	return s
}

func (s *target) connection(c net.Conn) {
	defer c.Close()
	conn, channels, requests, err := ssh.NewServerConn(c, s.config)
	if err != nil {
		return
	}
	if s.connected != nil {
		s.connected(conn)
	}
	s.conns.Add(1)
	go ssh.DiscardRequests(requests)
	n := 0
	for nc := range channels {
		if n++; s.channels != 0 && n > s.channels {
			_ = nc.Reject(ssh.Prohibited, "no more")
			continue
		}
		ch, requests, err := nc.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				ok := r.Type == "pty-req" || r.Type == "shell" || r.Type == "exec" || r.Type == "window-change"
				if r.WantReply {
					_ = r.Reply(ok, nil)
				}
				switch r.Type {
				case "shell":
					go s.serve(ch, "")
				case "signal":
					if s.signalled != nil {
						s.signalled(string(r.Payload[4:]))
					}
				case "exec":
					go s.serve(ch, string(r.Payload[4:]))
				}
			}
		}()
	}
}

// exit ends a channel as a command does.
func exit(ch ssh.Channel, status byte) {
	_, _ = ch.SendRequest("exit-status", false, []byte{0, 0, 0, status})
	ch.Close()
}

// with is the credential and the key that let a session in.
func (s *target) with(c *Config) {
	c.Material.User, c.Material.Password, c.Material.HostKeys = "ada", password, [][]byte{s.key.PublicKey().Marshal()}
}

// hosts pins the key, and keeps no credential.
func (s *target) hosts(c *Config) { c.Material.HostKeys = [][]byte{s.key.PublicKey().Marshal()} }
