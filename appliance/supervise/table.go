// Package supervise starts, confines, watches, restarts and reaps the roles, from one table.
package supervise

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"gatehouse/appliance/control"
)

// The uids of the roles, which are their gids too.
const (
	uidNetwork = 60901
	uidGateway = 60902
	uidConsole = 60903
	uidAgent   = 60904
	uidFilter  = 60905
)

// Paths is where things are; docs/architecture.md has both sets.
type Paths struct {
	Program       string // the executable; "" means /proc/self/exe
	Control       string // the control socket
	GatewaySocket string // where the agent finds the gateway
	Data          string // the data volume, or the state folder
	Lists         string // files of the allowlists; "" while locked
	Admission     string // what the filter role tells gateway and console
	Stage         string // folder of the early stage of the packet filter; "": there can be none
}

// Options is what makes one table differ from another.
type Options struct {
	Hosted     string // "": on our own image; else what GATEHOUSE_HOSTED says: container, host
	Privileged bool   // we are root: roles get uids of their own
	UID, GID   uint32 // of everything when not Privileged
	Locked     bool   // the small form: no data, no agent
	Version    string // of the program
	NoFilter   bool   // we may not filter in the kernel, so there is no capability to hand on
	Drops      bool   // the gateway is handed samples of refused packets
}

// Spec is one role: who it is, what it is given, and what it is kept from.
// Whatever is not in it the role does not have.
type Spec struct {
	Role     control.Role
	UID, GID uint32
	SetUID   bool     // start under UID and GID; false: we cannot, they are ours
	Caps     []string // kept: ambient and bounding, all others are dropped
	Env      []string // the whole environment
	Files    []string // names of inherited files, from descriptor 3 on
	Folders  []Folder // made before it starts
	OOMScore int      // who goes first when memory runs out
	Confine  Confinement
	program  string
}

// Folder is made, or put right, before a role starts.
type Folder struct {
	Path     string
	UID, GID uint32
	Mode     uint32
}

// Confinement is what the child puts on itself before any of its own code runs.
type Confinement struct {
	Role     control.Role      `json:"role"`
	Read     []string          `json:"read,omitempty"`  // Landlock: files and folders it may read
	Write    []string          `json:"write,omitempty"` // Landlock: folders it may change
	Limits   map[string]uint64 `json:"limits"`          // rlimits, soft and hard
	Families []string          `json:"families"`        // of sockets it may make
	Calls    []string          `json:"calls,omitempty"` // system calls that no other role may make
}

// Table is the one table of roles. On our own image all four; hosted, the host
// keeps its own links and clock, so there is no network role; locked, there is
// no agent, because it has nothing to report to.
func Table(p Paths, o Options) []Spec {
	inet := []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
	specs := []Spec{
		{
			Role: control.Network, UID: uidNetwork, Caps: []string{"CAP_NET_RAW"},
			OOMScore: 300,
			Confine: Confinement{
				Read:     []string{"/etc", "/proc/self", "/proc/sys/net", "/sys/class/net", "/sys/devices"},
				Limits:   limits(1024, o),
				Families: append(slices.Clone(inet), "AF_PACKET"),
			},
		},
		{
			Role: control.Gateway, UID: uidGateway, OOMScore: 200,
			Files: []string{control.FileHTTPS, control.FileHTTP, control.FileConsole, control.FileAgent},
			Confine: Confinement{
				Read:     []string{"/etc", "/proc/self", "/proc/sys/net"},
				Limits:   limits(16384, o), // 10,000 slow connections and their ends
				Families: inet,
			},
		},
		{
			Role: control.Console, UID: uidConsole, OOMScore: 400,
			Files: []string{control.FileGateway},
			Confine: Confinement{
				Read:     []string{"/etc", "/proc/self", "/proc/sys/net", "/usr/share/zoneinfo", "/usr/share/ca-certificates"},
				Limits:   limits(16384, o),
				Families: inet,
			},
		},
		{
			Role: control.Agent, UID: uidAgent, OOMScore: 500,
			Confine: Confinement{
				Read:     []string{"/etc", "/proc", "/sys", "/usr/share/ca-certificates"},
				Limits:   limits(4096, o),
				Families: inet,
			},
		},
	}
	specs = slices.DeleteFunc(specs, func(s Spec) bool {
		return s.Role == control.Network && o.Hosted != "" || s.Role == control.Agent && o.Locked
	})
	for i := range specs {
		if o.Drops && specs[i].Role == control.Gateway {
			specs[i].Files = append(specs[i].Files, control.FileDrops)
		}
		specs[i].fill(p, o)
	}
	return specs
}

// Filter is the row of the role that runs while allowlists change, and is not
// kept running: it reads their files and cannot change them, holds the one
// capability of the packet filter, and writes who may come in for the others.
func Filter(p Paths, o Options) Spec {
	s := Spec{
		Role: control.Filter, UID: uidFilter, Caps: []string{"CAP_NET_ADMIN"}, OOMScore: 600,
		Confine: Confinement{
			Read:     []string{p.Lists, "/proc/self", "/proc/sys/net", "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size"},
			Limits:   limits(256, o),
			Families: []string{"AF_NETLINK"},
		},
	}
	if p.Stage != "" {
		s.Caps = append(s.Caps, "CAP_BPF")
		s.Confine.Calls = []string{"bpf"}
		s.Confine.Read = append(s.Confine.Read, "/sys/devices/system/cpu/possible") // counters are per processor
	}
	s.program = p.Program
	if s.program == "" {
		s.program = "/proc/self/exe"
	}
	s.GID, s.SetUID = s.UID, o.Privileged
	if !o.Privileged {
		s.UID, s.GID, s.Caps = o.UID, o.GID, nil
	}
	if o.NoFilter {
		s.Caps = nil // a start that asks for what we do not have would fail
	}
	s.Confine.Role = s.Role
	s.Confine.Write = []string{filepath.Dir(p.Admission)}
	s.Folders = []Folder{{filepath.Dir(p.Admission), s.UID, s.GID, 0o755}}
	if p.Stage != "" {
		s.Confine.Write = append(s.Confine.Write, p.Stage)
		s.Folders = append(s.Folders, Folder{p.Stage, s.UID, s.GID, 0o700})
	}
	return s
}

// fill adds what all roles have alike.
func (s *Spec) fill(p Paths, o Options) {
	s.program = p.Program
	if s.program == "" {
		s.program = "/proc/self/exe"
	}
	s.GID, s.SetUID = s.UID, o.Privileged
	if !o.Privileged {
		s.UID, s.GID, s.Caps = o.UID, o.GID, nil
	}
	s.Confine.Role = s.Role
	s.Env = []string{
		control.EnvControl + "=" + p.Control,
		control.EnvVersion + "=" + o.Version,
	}
	if o.Hosted != "" {
		s.Env = append(s.Env, control.EnvHosted+"="+o.Hosted)
		// Where /etc/resolv.conf leads with systemd-resolved, resolvconf, NetworkManager.
		s.Confine.Read = append(s.Confine.Read, "/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager")
	}
	if p.Admission != "" && (s.Role == control.Gateway || s.Role == control.Console || s.Role == control.Agent) {
		s.Env = append(s.Env, control.EnvAdmission+"="+p.Admission)
		// The folder is there before the role, or Landlock would never let it in.
		folder := Filter(p, o).Folders[0]
		s.Folders = append(s.Folders, folder)
		s.Confine.Read = append(s.Confine.Read, folder.Path)
	}
	if s.Role == control.Agent {
		s.Env = append(s.Env, control.EnvGateway+"="+p.GatewaySocket)
	}
	if o.Locked {
		s.Env = append(s.Env, control.EnvLocked+"=1")
		return
	}
	state := filepath.Join(p.Data, string(s.Role))
	s.Env = append(s.Env, control.EnvState+"="+state)
	s.Folders = append(s.Folders, Folder{state, s.UID, s.GID, 0o700})
	s.Confine.Write = []string{state}
	if s.Role == control.Console {
		audit := filepath.Join(p.Data, "audit")
		owner := o.UID
		if o.Privileged {
			owner = 0
		}
		s.Env = append(s.Env, control.EnvAudit+"="+audit)
		s.Folders = append(s.Folders, Folder{audit, owner, s.GID, 0o750})
		s.Confine.Read = append(s.Confine.Read, audit)
	}
}

// limits gives the rlimits of a role that may have that many files open.
// Threads are counted per uid by the kernel, so they can be bounded only where
// the uid is the role's own.
func limits(files uint64, o Options) map[string]uint64 {
	l := map[string]uint64{"NOFILE": files, "CORE": 0}
	if o.Privileged {
		l["NPROC"] = 256
	}
	return l
}

// String prints the whole row, for the golden test and for people.
func (s Spec) String() string {
	var b strings.Builder
	line := func(name string, values ...string) {
		if len(values) == 0 {
			values = []string{"none"}
		}
		fmt.Fprintf(&b, "  %-9s %s\n", name, strings.Join(values, " "))
	}
	fmt.Fprintf(&b, "%s: %s %s\n", s.Role, s.program, s.Role)
	if s.SetUID {
		line("uid", fmt.Sprintf("%d gid %d, no other groups", s.UID, s.GID))
	} else {
		line("uid", fmt.Sprintf("%d gid %d, inherited", s.UID, s.GID))
	}
	line("caps", s.Caps...)
	line("env", s.Env...)
	line("files", s.Files...)
	var folders []string
	for _, f := range s.Folders {
		folders = append(folders, fmt.Sprintf("%s %d:%d %04o;", f.Path, f.UID, f.GID, f.Mode))
	}
	line("folders", folders...)
	line("read", s.Confine.Read...)
	line("write", s.Confine.Write...)
	var lim []string
	for name, v := range s.Confine.Limits {
		lim = append(lim, fmt.Sprintf("%s=%d", name, v))
	}
	slices.Sort(lim)
	line("limits", append(lim, "umask=077")...)
	line("sockets", s.Confine.Families...)
	if len(s.Confine.Calls) > 0 {
		line("calls", s.Confine.Calls...)
	}
	line("oom", fmt.Sprint(s.OOMScore))
	return b.String()
}
