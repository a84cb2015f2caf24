package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"gatehouse/appliance/cert/sealed"
	"gatehouse/appliance/enroll"
)

const (
	identityFile    = "site-identity.sealed"
	identityPurpose = "gatehouse/agent/identity/1"
)

// identity is what makes this site itself: an id and a device key, made once.
type identity struct {
	site   string
	device *ecdsa.PrivateKey
}

type storedIdentity struct {
	Site string
	Key  []byte // PKCS #8
}

// loadIdentity reads it from dir or makes it. One that does not open is an
// error: a new one would be another site to every hub.
func loadIdentity(dir string, subkey []byte) (identity, error) {
	path := filepath.Join(dir, identityFile)
	b, err := sealed.Read(path, subkey, identityPurpose)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return makeIdentity(path, subkey)
	case err != nil:
		return identity{}, fmt.Errorf("opening the identity of this site: %w: put the file back, or remove it to become a new site", err)
	}
	id, err := parseIdentity(b)
	if err != nil {
		return identity{}, fmt.Errorf("opening the identity of this site, %s: %w", path, err)
	}
	return id, nil
}

func parseIdentity(b []byte) (identity, error) {
	var s storedIdentity
	if rest, err := asn1.Unmarshal(b, &s); err != nil || len(rest) > 0 {
		return identity{}, errors.Join(errors.New("its content is malformed"), err)
	}
	if err := enroll.CheckSite(s.Site); err != nil {
		return identity{}, err
	}
	k, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return identity{}, fmt.Errorf("the device key: %w", err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return identity{}, fmt.Errorf("the device key is %T", k)
	}
	return identity{s.Site, key}, nil
}

func makeIdentity(path string, subkey []byte) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, fmt.Errorf("making the identity of this site: %w", err)
	}
	var site [16]byte
	if _, err := rand.Read(site[:]); err != nil {
		return identity{}, fmt.Errorf("making the identity of this site: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return identity{}, fmt.Errorf("making the identity of this site: %w", err)
	}
	id := identity{hex.EncodeToString(site[:]), key}
	b, err := asn1.Marshal(storedIdentity{id.site, der})
	if err != nil {
		return identity{}, fmt.Errorf("making the identity of this site: %w", err)
	}
	if err := sealed.Write(path, subkey, identityPurpose, b); err != nil {
		return identity{}, fmt.Errorf("keeping the identity of this site: %w", err)
	}
	return id, nil
}

func (i identity) public() ([]byte, error) {
	b, err := x509.MarshalPKIXPublicKey(i.device.Public())
	if err != nil {
		return nil, fmt.Errorf("writing the device key: %w", err)
	}
	return b, nil
}
