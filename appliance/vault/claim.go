package vault

// MetaSize is the size of META in bytes.
const MetaSize = 4 << 20

// ReadClaimVerifier reads the verifier of a claim code that was set at
// flashing; ok is false if none was.
func ReadClaimVerifier(dev Device) (salt [16]byte, key [32]byte, ok bool, err error) {
	return salt, key, false, nil
}

// WriteClaimVerifier keeps the verifier of a claim code.
func WriteClaimVerifier(dev Device, salt [16]byte, key [32]byte) error { return nil }

// ClearClaimVerifier forgets it.
func ClearClaimVerifier(dev Device) error { return nil }
