package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestSES2_MessagesThatAreRefused(t *testing.T) {
	for name, b := range map[string]string{
		"nothing":       "",
		"half a length": "\x00",
		"cut":           "\x00\x10{\"do\":",
		"too long":      "\xff\xff{}",
		"no JSON":       "\x00\x02xx",
		"unknown field": "\x00\x0e{\"do\":\"x\",\"z\":1}"[:16],
		"a wrong type":  "\x00\x08{\"do\":1}",
	} {
		if o, err := ReadOpen(strings.NewReader(b)); err == nil {
			t.Errorf("%s was read as %+v", name, o)
		}
	}
	buf := make([]byte, MaxFrame)
	for name, b := range map[string]string{"nothing": "", "half a head": "o\x00", "cut": "o\x00\x05abc", "too long": "o\x40\x01" + strings.Repeat("x", MaxFrame+1)} {
		if _, _, err := ReadFrame(strings.NewReader(b), buf); err == nil {
			t.Errorf("frame, %s: read", name)
		}
	}
	if err := WriteFrame(io.Discard, Output, make([]byte, MaxFrame+1)); err == nil {
		t.Error("a frame over the limit was written")
	}
	if err := WriteOpen(io.Discard, Open{Command: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("a message over the limit was written")
	}
}

func TestSES2_RefusalsAreHarmlessText(t *testing.T) {
	var b bytes.Buffer
	if err := WriteRefusal(&b, Refuse(HostKey, "no\x1b]0;title\x07\u202e%s", strings.Repeat("x", 5000))); err != nil {
		t.Fatal(err)
	}
	_, err := ReadReply(&b)
	var r *Refusal
	if !errors.As(err, &r) || r.Code != HostKey || len(r.Text) > 1024 || strings.ContainsAny(r.Text, "\x1b\x07\u202e") {
		t.Errorf("%v", err)
	}
}

// FuzzRead: what the other end sends is read, or refused, and never more than its bound.
func FuzzRead(f *testing.F) {
	for _, o := range []Open{{Do: Terminal, Width: 80, Height: 24}, {Do: Exec, Command: "true"}, {Do: Files, Args: []byte(`{"op":"list"}`)}} {
		var b bytes.Buffer
		if err := errors.Join(WriteOpen(&b, o), WriteFrame(&b, Input, []byte("x"))); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if o, err := ReadOpen(r); err == nil && len(o.Command) > maxMessage {
			t.Fatalf("%d bytes of command", len(o.Command))
		}
		_, _ = ReadReply(bytes.NewReader(b))
		buf := make([]byte, MaxFrame)
		for {
			_, content, err := ReadFrame(r, buf)
			if err != nil {
				return
			}
			if len(content) > MaxFrame {
				t.Fatalf("a frame of %d bytes", len(content))
			}
		}
	})
}
