package control

// OpDiscovery is asked every few seconds: whether the box shall be found by
// mDNS now, and as what. The question tells what is answered, for the faces.
var OpDiscovery = Op[Discovery, DiscoveryState]{"discovery", []Role{Network}}

// Discovery is the name under which the box answers mDNS, without .local:
// Status.Name, or with -2, -3 … behind it where somebody else had it first.
// Empty while it answers under none.
type Discovery struct {
	Name string `json:"name"`
}

// DiscoveryState is what to tell. Everybody on the link can read all of it.
type DiscoveryState struct {
	On      bool   `json:"on"`
	Name    string `json:"name"` // to begin with
	State   State  `json:"state"`
	Version string `json:"version"`
	Port    uint16 `json:"port"` // of the page
}
