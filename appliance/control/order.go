package control

// OpFactorReset acknowledges that the order to remove the owner's second
// factor was carried out. The order itself is no request: only a person at the
// box gives it, and the console learns of it when it starts.
var OpFactorReset = Op[FactorReset, None]{"factor-reset", []Role{Console}}

// FactorReset names the order that ConsoleState told.
type FactorReset struct {
	Order string `json:"order"`
}
