// Package hostid finds an identifier of the machine that is not a placeholder.
package hostid

// Source is one identifier and where it came from.
type Source struct {
	Name  string // machine-id, dmi-uuid, …: recorded when a key is bound to it
	Value string // normalised: lower case, no blanks
}

// ID is every usable identifier of a machine, the best first.
type ID []Source
