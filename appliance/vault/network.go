package vault

// The network settings that were last kept, for a start that cannot open the data.
const (
	networkMagic = "GHNETWK1"
	networkAt    = networkStart
	networkPlace = 32 << 10
)

func networkPlaces() places {
	return places{networkMagic, networkAt, networkPlace, "the network settings"}
}

// MaxNetwork is how much fits, in bytes.
const MaxNetwork = networkPlace - placeHead - 32

// ReadNetwork gives the newest copy that is whole; nil if there is none.
func ReadNetwork(dev Device) ([]byte, error) {
	content, _, _, err := networkPlaces().newest(dev)
	return content, err
}

// WriteNetwork keeps a copy.
func WriteNetwork(dev Device, content []byte) error { return networkPlaces().write(dev, content) }
