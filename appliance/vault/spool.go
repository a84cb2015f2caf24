package vault

// What happened while the box was locked: the audit log is among the data, so
// it waits in META until they are open.
const (
	spoolMagic = "GHSPOOL1"
	spoolAt    = 448 << 10
	spoolPlace = 32 << 10
)

func spoolPlaces() places {
	return places{spoolMagic, spoolAt, spoolPlace, "what happened while locked"}
}

// MaxSpool is how much fits, in bytes.
const MaxSpool = spoolPlace - placeHead - 32

// ReadSpool gives the newest copy that is whole; nil if there is none. Whoever
// holds the disk may have written it.
func ReadSpool(dev Device) ([]byte, error) {
	content, _, _, err := spoolPlaces().newest(dev)
	return content, err
}

// WriteSpool keeps it.
func WriteSpool(dev Device, content []byte) error { return spoolPlaces().write(dev, content) }
