package control

// EarlyStage is what the faces show of the program at the links that drops
// strangers before the lists are asked.
type EarlyStage struct {
	Links    []string `json:"links,omitempty"` // where it is
	Sentence string   `json:"sentence"`        // what it does, or why it does not
	Dropped  Counter  `json:"dropped"`
}
