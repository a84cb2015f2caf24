package control

// Erase forgets everything on the box, and restarts it.
type Erase struct {
	By
	Name string `json:"name"` // of the box, as the person typed it
}

// ReleaseAsk asks for a statement that the box is given away.
type ReleaseAsk struct {
	By
	Name string `json:"name"` // of the person, for the statement
}

// Released is the statement, a file for package released.
type Released struct {
	File []byte `json:"file"`
}

// What ends the life of a box with its owner.
var (
	// OpErase forgets everything, after the answer is sent.
	OpErase = Op[Erase, None]{"erase", []Role{Console}}
	// OpReleased signs a statement. It changes nothing.
	OpReleased = Op[ReleaseAsk, Released]{"released", []Role{Console}}
)
