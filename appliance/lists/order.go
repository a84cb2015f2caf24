package lists

import (
	"net/netip"

	"gatehouse/appliance/control"
	"gatehouse/netfilter"
)

// Order is what the filter role is started for. It comes as one argument, and
// holds nothing secret.
type Order struct {
	Folder    string          `json:"folder"` // of the files to judge; "": no lists
	Before    string          `json:"before"` // of those in force, to say what changes; "": none
	Off       bool            `json:"off"`    // they judge nobody, whatever they say
	Apply     bool            `json:"apply"`  // else only judge
	Kernel    bool            `json:"kernel"` // this program may filter in the kernel
	Admission string          `json:"admission"`
	Stage     string          `json:"stage"`    // folder of the early stage; "": there can be none
	NoStage   string          `json:"no_stage"` // why not
	Form      netfilter.Form  `json:"form"`
	Ports     netfilter.Ports `json:"ports"`
	OnLink    []netip.Prefix  `json:"on_link"` // addresses of the box
	Watch     []netip.Addr    `json:"watch"`   // who is told if they would be cut off; the asker first
}

// Answer is the one line that the filter role writes.
type Answer struct {
	Error    string              `json:"error,omitempty"` // the kernel or the disk refused
	Report   control.ListsReport `json:"report"`
	Enabled  bool                `json:"enabled"`
	Lists    []control.List      `json:"lists"`
	Ranges   int                 `json:"ranges"`
	Early    control.EarlyStage  `json:"early"`
	InForce  netfilter.Lists     `json:"in_force"` // what the rules ask, if it was applied
	Admitted []string            `json:"admitted"` // for each of Watch, the lists that have it, with commas
}
