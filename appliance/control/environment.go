package control

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Environment is what the supervisor hands a role: paths in variables and open
// files by name. The role has nothing else.
type Environment struct {
	Control   string              // path of the control socket
	State     string              // the role's own folder on the data volume; "" if it has none (locked)
	Gateway   string              // agent: path of the gateway's local socket
	Admission string              // gateway, console, agent: file that says who may come in; "" if nothing does
	Audit     string              // folder of the audit log, readable by the console alone
	Locked    bool                // the small form: nothing of the data volume is there
	Hosted    bool                // GATEHOUSE_HOSTED: not on our own image
	Version   string              // of the program
	Files     map[string]*os.File // https, http, console, gateway, agent
}

// The names of inherited files.
const (
	FileHTTPS   = "https"   // gateway: listening socket of port 443
	FileHTTP    = "http"    // gateway: listening socket of port 80
	FileConsole = "console" // gateway: SEQPACKET end towards the console
	FileGateway = "gateway" // console: SEQPACKET end towards the gateway
	FileAgent   = "agent"   // gateway: listening Unix socket that the agent dials
)

// The variables that carry an Environment.
const (
	EnvControl   = "GATEHOUSE_CONTROL"
	EnvState     = "GATEHOUSE_STATE"
	EnvAudit     = "GATEHOUSE_AUDIT"
	EnvAdmission = "GATEHOUSE_ADMISSION"
	EnvLocked    = "GATEHOUSE_LOCKED"
	EnvHosted    = "GATEHOUSE_HOSTED"
	EnvVersion   = "GATEHOUSE_VERSION"
	EnvFiles     = "GATEHOUSE_FILES"          // https=3,http=4
	EnvGateway   = "GATEHOUSE_GATEWAY_SOCKET" // agent: path of the gateway's local socket
)

// Inherit reads the Environment of this process.
func Inherit() (Environment, error) {
	e := Environment{
		Control:   os.Getenv(EnvControl),
		State:     os.Getenv(EnvState),
		Gateway:   os.Getenv(EnvGateway),
		Audit:     os.Getenv(EnvAudit),
		Admission: os.Getenv(EnvAdmission),
		Locked:    os.Getenv(EnvLocked) == "1",
		Hosted:    os.Getenv(EnvHosted) != "",
		Version:   os.Getenv(EnvVersion),
		Files:     make(map[string]*os.File),
	}
	if e.Control == "" {
		return e, fmt.Errorf("%s is not set: roles are started by the supervisor, not by hand", EnvControl)
	}
	for pair := range strings.SplitSeq(os.Getenv(EnvFiles), ",") {
		if pair == "" {
			continue
		}
		name, number, ok := strings.Cut(pair, "=")
		fd, err := strconv.Atoi(number)
		if !ok || err != nil || fd < 3 {
			return e, fmt.Errorf("%s: %q is not name=number", EnvFiles, pair)
		}
		e.Files[name] = os.NewFile(uintptr(fd), name)
	}
	return e, nil
}
