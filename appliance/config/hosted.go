package config

import (
	"bytes"
	"fmt"
	"io/fs"
)

// Form is where the hosted form runs.
type Form string

// The two forms. In a container the host's hardware says nothing about who
// holds the data, so a passphrase has to be given.
const (
	Container Form = "container"
	Host      Form = "host"
)

// Hosted finds out the form: GATEHOUSE_HOSTED decides, else the marks that
// container runtimes leave. root is the file system, os.DirFS("/").
func Hosted(lookup func(string) (string, bool), root fs.FS) (Form, error) {
	if v, ok := lookup("GATEHOUSE_HOSTED"); ok {
		switch f := Form(v); f {
		case Container, Host:
			return f, nil
		}
		return "", fmt.Errorf("GATEHOUSE_HOSTED is %q: set it to container or host, or not at all", v)
	}
	// Docker; Podman and CRI-O. systemd-nspawn, LXC and Podman set the
	// variable, Kubernetes its own.
	for _, mark := range []string{".dockerenv", "run/.containerenv", "run/systemd/container"} {
		if _, err := fs.Stat(root, mark); err == nil {
			return Container, nil
		}
	}
	for _, variable := range []string{"container", "KUBERNETES_SERVICE_HOST"} {
		if v, ok := lookup(variable); ok && v != "" {
			return Container, nil
		}
	}
	// With cgroup v1, or v2 without a namespace of its own, the group of the
	// first process names the runtime.
	b, err := fs.ReadFile(root, "proc/1/cgroup")
	if err != nil {
		return Host, nil // no /proc: nothing says container
	}
	for _, runtime := range []string{"/docker", "/lxc", "/kubepods", "/libpod", "/containerd", "/crio", "/machine.slice/"} {
		if bytes.Contains(b, []byte(runtime)) {
			return Container, nil
		}
	}
	return Host, nil
}
