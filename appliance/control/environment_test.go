package control

import (
	"strings"
	"testing"
)

func TestInheritRefuses(t *testing.T) {
	t.Setenv(EnvControl, "")
	if _, err := Inherit(); err == nil || !strings.Contains(err.Error(), "started by the supervisor") {
		t.Errorf("without a control socket: %v", err)
	}
	t.Setenv(EnvControl, "/run/gatehouse/control.sock")
	for _, files := range []string{"https", "https=", "https=x", "https=2", "https=-1", "https=3;http=4"} {
		t.Setenv(EnvFiles, files)
		if _, err := Inherit(); err == nil {
			t.Errorf("%s=%q was taken", EnvFiles, files)
		}
	}
}

func TestInheritReadsWhatTheSupervisorWrote(t *testing.T) {
	for k, v := range map[string]string{
		EnvControl: "/c", EnvState: "/data/console", EnvAudit: "/data/audit", EnvLocked: "1",
		EnvHosted: "container", EnvVersion: "1.2.3", EnvFiles: "gateway=1000003,http=1000004",
	} {
		t.Setenv(k, v)
	}
	e, err := Inherit()
	if err != nil {
		t.Fatal(err)
	}
	if e.Control != "/c" || e.State != "/data/console" || e.Audit != "/data/audit" || !e.Locked || !e.Hosted || e.Version != "1.2.3" {
		t.Errorf("Inherit = %+v", e)
	}
	if len(e.Files) != 2 || e.Files[FileGateway].Fd() != 1000003 || e.Files[FileHTTP].Name() != "http" {
		t.Errorf("files = %v", e.Files)
	}
}
