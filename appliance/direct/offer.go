package direct

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"

	"gatehouse/appliance/direct/probe"
	"gatehouse/appliance/session"
)

// Limits of what an end names.
const (
	maxCandidates = 8    // addresses of one end
	lowestPort    = 1024 // below are services of hosts, never the other end
	maxOffer      = 1024 // bytes of an offer
)

// offer is where one end can be found in one round of the search.
type offer struct {
	Round     uint32       `json:"round"`     // counted by the technician from 1; the agent's is the one it answers
	Addresses []netip.Addr `json:"addresses"` // of its own links
	TCP       uint16       `json:"tcp"`       // where it listens; 0: nowhere
	UDP       uint16       `json:"udp"`       // its socket's port
	Secret    probe.Secret `json:"secret"`    // by which the other end knows what comes from it, this round
}

// check refuses what an honest end does not send. Whether an address may be
// tried is another question, asked of the lists.
func (o offer) check() error {
	switch {
	case o.Round == 0:
		return fmt.Errorf("%w: an offer without its round", session.ErrMalformed)
	case o.Addresses == nil:
		return fmt.Errorf("%w: an offer without a list of addresses", session.ErrMalformed)
	case len(o.Addresses) > maxCandidates:
		return fmt.Errorf("%w: an offer with %d addresses, the limit is %d", session.ErrMalformed, len(o.Addresses), maxCandidates)
	case o.UDP < lowestPort || o.TCP != 0 && o.TCP < lowestPort:
		return fmt.Errorf("%w: an offer with the ports tcp %d and udp %d, want %d and more", session.ErrMalformed, o.TCP, o.UDP, lowestPort)
	case len(o.Secret) != probe.SecretSize:
		return fmt.Errorf("%w: an offer with a secret of %d bytes, want %d", session.ErrMalformed, len(o.Secret), probe.SecretSize)
	}
	for _, a := range o.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%w: an offer with the address %q", session.ErrMalformed, a)
		}
	}
	return nil
}

// writeOffer writes a length (2, big-endian) and JSON in one write.
func writeOffer(w io.Writer, o offer) error {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("writing an offer of ways: %w", err)
	}
	if len(b) > maxOffer {
		return fmt.Errorf("writing an offer of ways: %d bytes, the limit is %d", len(b), maxOffer)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(b)), uint16(len(b))), b...))
	return err
}

// readOffer reads one in its one form. An end of the stream before it is io.EOF.
func readOffer(r io.Reader) (offer, error) {
	var o offer
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return o, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > maxOffer {
		return o, fmt.Errorf("%w: an offer of %d bytes, the limit is %d", session.ErrMalformed, n, maxOffer)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return o, fmt.Errorf("an offer was cut: %w", err)
	}
	return parseOffer(b)
}

func parseOffer(b []byte) (offer, error) {
	var o offer
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&o); err != nil {
		return offer{}, fmt.Errorf("%w: an offer: %w", session.ErrMalformed, err)
	}
	if again, err := json.Marshal(o); err != nil || !bytes.Equal(again, b) {
		return offer{}, fmt.Errorf("%w: an offer that is not in its one form", session.ErrMalformed)
	}
	if err := o.check(); err != nil {
		return offer{}, err
	}
	return o, nil
}
