package relay

import (
	"encoding/binary"
	"fmt"
	"net"
)

const (
	recordHead = 5
	// maxRecord is the longest protected record (RFC 8446, 5.2).
	maxRecord = 1<<14 + 256
)

// records is a connection that never gives its reader a byte beyond the TLS
// record that it is in. crypto/tls reads as much as there is; what comes after
// the last record of the outer TLS belongs to somebody else.
type records struct {
	net.Conn
	ahead []byte // read before; given first
	head  [recordHead]byte
	have  int // bytes of head that were given
	left  int // bytes of the record's content that were not
}

func (r *records) Read(p []byte) (int, error) {
	most := r.left
	if most == 0 {
		most = recordHead - r.have
	}
	p = p[:min(len(p), most)]
	n, err := r.read(p)
	if r.left > 0 {
		r.left -= n
		return n, err
	}
	copy(r.head[r.have:], p[:n])
	if r.have += n; r.have == recordHead {
		r.have, r.left = 0, int(binary.BigEndian.Uint16(r.head[3:]))
		if r.left > maxRecord {
			return n, fmt.Errorf("a record of %d bytes: TLS has none over %d", r.left, maxRecord)
		}
	}
	return n, err
}

func (r *records) read(p []byte) (int, error) {
	if len(r.ahead) > 0 {
		n := copy(p, r.ahead)
		r.ahead = r.ahead[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

// clean says whether the reader stands between two records with nothing read ahead.
func (r *records) clean() bool { return r.have == 0 && r.left == 0 && len(r.ahead) == 0 }
