// Package config parses the configuration of the hosted form into values that are valid by construction.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// fileLimit is far above any real file, in bytes.
const fileLimit = 64 << 10

// Config is a valid configuration; docs/gatehouse.toml explains each value.
type Config struct {
	Name        string // "" if one is to be made
	State       string // absolute
	HTTP        Listen
	HTTPS       Listen
	Names       []string // lower case, sorted, each once
	LogLevel    slog.Level
	KeyVariable string
	Lists       string // folder of the host with the allowlists, absolute; "": they are edited on the page
	Certificate string // path of a chain in PEM; "" if the page's choice counts
	Key         string // path of its key; given with Certificate
}

// Sources is where a configuration comes from.
type Sources struct {
	File   string                      // path; "" for none
	Flags  map[string]string           // those given, by name: "https" → ":8443"
	Lookup func(string) (string, bool) // os.LookupEnv
}

// raw is a configuration as far as it was given. Each type checks itself while
// it is parsed, so that a wrong value is reported with its line.
type raw struct {
	Name        *hostLabel    `toml:"name"`
	State       *absolute     `toml:"state"`
	HTTP        *Listen       `toml:"http"`
	HTTPS       *Listen       `toml:"https"`
	Names       []hostName    `toml:"names"`
	LogLevel    *level        `toml:"log_level"`
	KeyVariable *variableName `toml:"key_variable"`
	Lists       *absolute     `toml:"lists"`
	Certificate *absolute     `toml:"certificate"`
	Key         *absolute     `toml:"certificate_key"`
}

// Flag is one setting as a flag, for the command that reads them.
type Flag struct{ Name, Usage string }

// Flags are all that Sources.Flags may hold.
func Flags() []Flag {
	return []Flag{
		{"name", "what the appliance is called"},
		{"state", "folder of everything that survives a restart"},
		{"http", "address and port of the plain page"},
		{"https", "address and port of the console"},
		{"names", "names that are ours, with commas between"},
		{"log-level", "debug, info, warn or error"},
		{"key-variable", "environment variable that carries the passphrase"},
		{"lists", "folder of this host with the allowlists, followed whenever its files change"},
		{"certificate", "file of a certificate chain in PEM, watched for changes"},
		{"certificate-key", "file of its key in PEM"},
	}
}

// Load reads and checks everything: flags before variables before the file.
func Load(s Sources) (Config, error) {
	var r raw
	if s.File != "" {
		b, err := read(s.File)
		if err != nil {
			return Config{}, fmt.Errorf("reading the configuration: %w", err)
		}
		if r, err = parse(b); err != nil {
			return Config{}, fmt.Errorf("configuration %s: %w", s.File, err)
		}
	}
	for _, f := range Flags() {
		variable := "GATEHOUSE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v, ok := s.Lookup(variable); ok {
			if err := r.set(f.Name, v); err != nil {
				return Config{}, fmt.Errorf("variable %s: %w", variable, err)
			}
		}
	}
	for name, v := range s.Flags {
		if err := r.set(name, v); err != nil {
			return Config{}, fmt.Errorf("flag --%s: %w", name, err)
		}
	}
	return r.valid()
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, fileLimit+1))
	if err == nil && len(b) > fileLimit {
		err = fmt.Errorf("%s is over %d bytes", path, fileLimit)
	}
	return b, err
}

// parse refuses unknown keys; an error begins with the line it is about.
func parse(b []byte) (raw, error) {
	r, err := decode(b)
	var (
		unknown *toml.StrictMissingError
		wrong   *toml.DecodeError
	)
	switch {
	case errors.As(err, &unknown):
		var all []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: there is no key %q", line, strings.Join(e.Key(), ".")))
		}
		return raw{}, errors.Join(all...)
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		return raw{}, fmt.Errorf("line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return raw{}, fmt.Errorf("line %d: %w", lineOf(b, err), err)
	}
	return r, nil
}

func decode(b []byte) (r raw, err error) {
	err = toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&r)
	return r, err
}

// lineOf finds the line of an error that does not say it (a number where there
// should be text): the least number of lines that gives the same error. The
// library stops at the first, so that more lines change nothing.
func lineOf(b []byte, err error) int {
	lines := bytes.SplitAfter(b, []byte("\n"))
	return 1 + sort.Search(len(lines)-1, func(n int) bool {
		_, other := decode(bytes.Join(lines[:n+1], nil))
		return other != nil && other.Error() == err.Error()
	})
}

// set takes one value from a flag or a variable.
func (r *raw) set(name, value string) error {
	v := []byte(value)
	switch name {
	case "name":
		r.Name = new(hostLabel)
		return r.Name.UnmarshalText(v)
	case "state":
		r.State = new(absolute)
		return r.State.UnmarshalText(v)
	case "http":
		r.HTTP = new(Listen)
		return r.HTTP.UnmarshalText(v)
	case "https":
		r.HTTPS = new(Listen)
		return r.HTTPS.UnmarshalText(v)
	case "log-level":
		r.LogLevel = new(level)
		return r.LogLevel.UnmarshalText(v)
	case "key-variable":
		r.KeyVariable = new(variableName)
		return r.KeyVariable.UnmarshalText(v)
	case "lists":
		r.Lists = new(absolute)
		return r.Lists.UnmarshalText(v)
	case "certificate":
		r.Certificate = new(absolute)
		return r.Certificate.UnmarshalText(v)
	case "certificate-key":
		r.Key = new(absolute)
		return r.Key.UnmarshalText(v)
	case "names":
		r.Names = nil
		for one := range strings.SplitSeq(value, ",") {
			if one = strings.TrimSpace(one); one == "" {
				continue
			}
			var h hostName
			if err := h.UnmarshalText([]byte(one)); err != nil {
				return err
			}
			r.Names = append(r.Names, h)
		}
		return nil
	}
	return errors.New("there is no such setting")
}

// valid fills in the defaults and checks what concerns several values.
func (r raw) valid() (Config, error) {
	c := Config{
		State:       "/var/lib/gatehouse",
		HTTP:        Listen{port: 8080},
		HTTPS:       Listen{port: 8443},
		KeyVariable: "GATEHOUSE_KEY",
	}
	if r.Name != nil {
		c.Name = r.Name.s
	}
	if r.State != nil {
		c.State = r.State.s
	}
	if r.HTTP != nil {
		c.HTTP = *r.HTTP
	}
	if r.HTTPS != nil {
		c.HTTPS = *r.HTTPS
	}
	if r.LogLevel != nil {
		c.LogLevel = slog.Level(*r.LogLevel)
	}
	if r.KeyVariable != nil {
		c.KeyVariable = r.KeyVariable.s
	}
	if r.Lists != nil {
		c.Lists = r.Lists.s
	}
	if (r.Certificate == nil) != (r.Key == nil) {
		return Config{}, errors.New("certificate and certificate_key go together: give both or neither")
	}
	if r.Certificate != nil {
		c.Certificate, c.Key = r.Certificate.s, r.Key.s
	}
	for _, n := range r.Names {
		c.Names = append(c.Names, n.s)
	}
	slices.Sort(c.Names)
	c.Names = slices.Compact(c.Names)
	if c.HTTP.port == c.HTTPS.port && (c.HTTP.addr == c.HTTPS.addr || c.HTTP.everywhere() || c.HTTPS.everywhere()) {
		return Config{}, fmt.Errorf("http (%s) and https (%s) would listen on the same port: give one of them another", c.HTTP, c.HTTPS)
	}
	if c.Lists == c.State || strings.HasPrefix(c.Lists, c.State+"/") {
		return Config{}, fmt.Errorf("lists (%s) is in the state folder (%s), where the program keeps its own: choose another folder", c.Lists, c.State)
	}
	return c, nil
}

// AtNextStart names the settings that differ in next and cannot change while
// the program runs.
func (c Config) AtNextStart(next Config) []string {
	var names []string
	for _, f := range []struct {
		name string
		same bool
	}{
		{"name", c.Name == next.Name},
		{"state", c.State == next.State},
		{"http", c.HTTP == next.HTTP},
		{"https", c.HTTPS == next.HTTPS},
		{"key_variable", c.KeyVariable == next.KeyVariable},
		{"lists", c.Lists == next.Lists},
		{"certificate", c.Certificate == next.Certificate && c.Key == next.Key},
	} {
		if !f.same {
			names = append(names, f.name)
		}
	}
	return names
}
