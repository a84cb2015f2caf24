package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	targets "gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
	"gatehouse/appliance/technician"
	"gatehouse/appliance/technician/lanweb"
)

func openCommand() *cobra.Command {
	o := &opening{}
	c := &cobra.Command{
		Use:   "open TARGET",
		Short: "Open the web pages of a target in your browser",
		Long: `Open the web pages of a target of kind http or https at an address of this machine,
http://NAME-….localhost:PORT/, until it is interrupted. The address that is printed works
once, in one browser; other people on this machine do not get in.

The certificate of an https target is pinned at the first time, in certificates.json
beside known.json. If it has another key later, nothing is sent (exit code 7):
--forget-certificate takes the new one.`,
		Example: "  gatehouse open nas\n  gatehouse open printer --no-browser --port 8080",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.session(cmd, args[0], []string{"urls"}, func(ctx context.Context, s *technician.Session) error {
				return o.serve(ctx, cmd, s)
			})
		},
	}
	o.askAs.flags(c.Flags())
	c.Flags().BoolVar(&o.noBrowser, "no-browser", false, "print the address and open nothing")
	c.Flags().BoolVar(&o.forget, "forget-certificate", false, "pin the certificate that the target has now")
	c.Flags().Uint16Var(&o.port, "port", 0, "the local port; any free one if not given")
	return c
}

type opening struct {
	reach
	noBrowser, forget bool
	port              uint16
}

// opened is what open prints.
type opened struct {
	URL    string `json:"url"` // works once
	Target string `json:"target"`
}

func (o *opening) serve(ctx context.Context, cmd *cobra.Command, s *technician.Session) error {
	t := s.Grant.Target
	if t.Kind != targets.HTTP && t.Kind != targets.HTTPS {
		return fail(exitUsage, "%s is a target of kind %s, which has no web pages", t.Name, t.Kind)
	}
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(o.port))))
	if err != nil {
		return fmt.Errorf("opening the local port: %w", err)
	}
	defer l.Close()
	pins, err := readPins()
	if err != nil {
		return err
	}
	judge := &webTrust{pins: pins, at: s.Grant.Site + " " + net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))), name: t.Name, forget: o.forget, say: cmd.ErrOrStderr(), changed: make(chan error, 1)}
	p := lanweb.New(lanweb.Config{
		Label: hostLabel(t.Name), Port: l.Addr().(*net.TCPAddr).Port, HTTPS: t.Kind == targets.HTTPS, Host: t.Host, At: t.Port, Trust: judge.trust,
		Dial: func(ctx context.Context) (net.Conn, error) { return s.Dial(ctx, wire.Web) },
	})
	if err := p.Probe(ctx); err != nil {
		return refusedThere(unreachedStream(judge.first(err)))
	}
	server := &http.Server{Handler: p, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	defer server.Close()
	served := make(chan error, 1)
	go func() { served <- server.Serve(&bounded{l, make(chan struct{}, technician.MaxConnections)}) }() // ends with Close above
	if o.asJSON {
		err = printJSON(cmd.OutOrStdout(), opened{p.URL(), t.Name})
	} else {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), p.URL())
	}
	if err != nil {
		return err
	}
	if o.noBrowser {
		fmt.Fprintln(cmd.ErrOrStderr(), "Open this address in a browser on this machine; it works once. Ctrl-C ends it.")
	} else {
		openBrowser(ctx, p.URL())
		fmt.Fprintln(cmd.ErrOrStderr(), "Your browser opens it. If it does not, open the address yourself; it works once. Ctrl-C ends it.")
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.Done():
		return unreached(s.Err())
	case err := <-judge.changed:
		return err
	case err := <-served:
		return fmt.Errorf("serving the local address: %w", err)
	}
}

// bounded takes a number of connections at a time.
type bounded struct {
	net.Listener
	room chan struct{}
}

func (b *bounded) Accept() (net.Conn, error) {
	c, err := b.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case b.room <- struct{}{}:
		return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.room })}, nil
	default:
		c.Close()
		return b.Accept()
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// pins are the keys of https targets that were seen first:
// $XDG_CONFIG_HOME/gatehouse/certificates.json.
type pins struct {
	path string
	Keys []pin `json:"certificates"`
}

type pin struct {
	At    string    `json:"at"`  // site and host:port
	Key   string    `json:"key"` // SHA-256 of the public key, hexadecimal
	Since time.Time `json:"since"`
}

func readPins() (*pins, error) {
	path, err := configFile("certificates.json")
	if err != nil {
		return nil, err
	}
	p := &pins{path: path}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(b, p)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the certificates of targets in %s: %w", path, err)
	}
	return p, nil
}

// webTrust pins the key of one target.
type webTrust struct {
	at, name string
	say      io.Writer
	changed  chan error

	mu     sync.Mutex
	pins   *pins
	forget bool
}

func (t *webTrust) trust(key, certificate [sha256.Size]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := hex.EncodeToString(key[:])
	i := slices.IndexFunc(t.pins.Keys, func(p pin) bool { return p.At == t.at })
	switch {
	case i >= 0 && t.pins.Keys[i].Key == k:
		t.forget = false
		return nil
	case i >= 0 && !t.forget:
		err := fail(exitVerification, "%s shows another certificate than on %s, with another key (its SHA-256 is %s): something may stand between it and its network, or it was set up anew. Nothing was sent. Compare it at the target; --forget-certificate takes the new one",
			printable(t.name), t.pins.Keys[i].Since.Format("2006-01-02"), colons(certificate))
		select {
		case t.changed <- err:
		default:
		}
		return err
	case i >= 0:
		t.pins.Keys = slices.Delete(t.pins.Keys, i, i+1)
	}
	t.forget = false
	t.pins.Keys = append(t.pins.Keys, pin{t.at, k, time.Now().UTC()})
	fmt.Fprintf(t.say, "The certificate of %s is pinned from now on. Its SHA-256 is\n  %s\n", printable(t.name), colons(certificate))
	return writeConfig(t.pins.path, t.pins)
}

// first prefers what trust said to how the handshake puts it.
func (t *webTrust) first(err error) error {
	select {
	case changed := <-t.changed:
		return changed
	default:
		return err
	}
}

// colons is a digest as browsers show it.
func colons(sum [sha256.Size]byte) string {
	return strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", sum[:]), " ", ":"))
}
