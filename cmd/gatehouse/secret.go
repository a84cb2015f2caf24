package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// maxSecret bounds what is read as a secret.
const maxSecret = 4096

// checkSecretFlag refuses a secret on the command line, where every process
// of the machine and the shell's history can read it.
func checkSecretFlag(name, value string) error {
	if value == "" || value == "-" || strings.HasPrefix(value, "file:") {
		return nil
	}
	return fail(exitUsage, "--%s takes file:PATH or -, never the secret itself: the command line is open to every process and to your shell's history. If it was the real one, get a new one", name)
}

// readSecret reads the secret that a flag names; without its line end.
func readSecret(name, value string, stdin io.Reader) (string, error) {
	in := stdin
	if path, ok := strings.CutPrefix(value, "file:"); ok {
		f, err := os.Open(path)
		if err != nil {
			return "", fail(exitNotFound, "reading --%s: %w", name, err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("reading --%s: %w", name, err)
	}
	s := strings.TrimRight(string(b), "\r\n")
	switch {
	case len(b) > maxSecret:
		return "", fail(exitUsage, "--%s: more than %d bytes", name, maxSecret)
	case s == "":
		return "", fail(exitUsage, "--%s: there is nothing to read", name)
	case strings.ContainsAny(s, "\r\n"):
		return "", fail(exitUsage, "--%s: one line is wanted", name)
	}
	return s, nil
}

// oneStdin refuses two secrets that would both come from standard input.
func oneStdin(values ...string) error {
	n := 0
	for _, v := range values {
		if v == "-" {
			n++
		}
	}
	if n > 1 {
		return &failure{exitUsage, errors.New("only one secret can come from standard input: give the others as file:PATH")}
	}
	return nil
}
