package right

import "testing"

func TestUnknownRolesAndRightsHaveNothing(t *testing.T) {
	for _, role := range []Role{"", "root", "Owner", "owner "} {
		if May(role, ReadStatus) {
			t.Errorf("role %q may read the status", role)
		}
		if _, err := ParseRole(string(role)); err == nil {
			t.Errorf("role %q was parsed", role)
		}
	}
	if May(Owner, "") || May(Owner, "everything") {
		t.Error("a right that is not listed was had")
	}
}

func TestTable(t *testing.T) {
	all := []Right{ReadStatus, ReadAudit, ReadLogs, Power, Configure, ResetClock, ManageSites, OwnAccount, ManageTokens}
	want := map[Role]string{
		Owner:         "111111111",
		Administrator: "111110111",
		Technician:    "101000010",
		Viewer:        "100000010",
	}
	for role, bits := range want {
		for i, r := range all {
			if got := May(role, r); got != (bits[i] == '1') {
				t.Errorf("May(%s, %s) = %v", role, r, got)
			}
		}
		if p, err := ParseRole(string(role)); err != nil || p != role {
			t.Errorf("ParseRole(%q) = %q, %v", role, p, err)
		}
	}
}
