package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"gatehouse/netfilter"
	"gatehouse/netfilter/allowlist"
)

// A range is two elements: its first address, and the one behind its last,
// marked as an end. 1,500 elements of IPv6 take 48,000 bytes, and a list of
// elements can have 65,535.
const (
	rangesPerMessage = 750
	messagesPerBatch = 64
)

const (
	beginBatch  = unix.NFNL_MSG_BATCH_BEGIN
	endBatch    = unix.NFNL_MSG_BATCH_END
	newElements = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM
	getElements = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM
	inetFamily  = 1 // NFPROTO_INET
)

// fillElements sends the ranges, in transactions of bounded size: each is held
// once here and once in the kernel, whatever the size of the list.
func fillElements(sets []netfilter.Set) error {
	w, err := dial()
	if err != nil {
		return err
	}
	defer w.close()
	b := elementBatch{wire: w}
	for _, s := range sets {
		for ranges := s.Ranges; len(ranges) > 0; {
			n := min(len(ranges), rangesPerMessage)
			b.add(s.SetName, ranges[:n])
			ranges = ranges[n:]
			if b.count == messagesPerBatch {
				if err := b.commit(); err != nil {
					return fmt.Errorf("set %s: %w", s.SetName, err)
				}
			}
		}
	}
	return b.commit()
}

// elementBatch is one transaction.
type elementBatch struct {
	*wire
	b     []byte
	count int
	last  int // offset of the last message
}

func (e *elementBatch) add(name netfilter.SetName, ranges []allowlist.Range) {
	if e.count == 0 {
		e.b = end(e.header(e.b[:0], beginBatch, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), 0)
	}
	e.count++
	e.last = len(e.b)
	e.b = e.header(e.b, newElements, unix.NLM_F_REQUEST|unix.NLM_F_CREATE, inetFamily, 0)
	e.b = end(appendElements(e.b, name, ranges), e.last)
}

// appendElements appends table, set and elements of a message.
func appendElements(b []byte, name netfilter.SetName, ranges []allowlist.Range) []byte {
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, []byte(netfilter.Table+"\x00"))
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_SET, []byte(name.String()+"\x00"))
	list := len(b)
	b = attribute(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, nil)
	for _, r := range ranges {
		b = appendElement(b, r.First, false)
		// A range up to the last address of its family has no end: there is no
		// address behind it, and an interval without one reaches that far.
		if behind := r.Last.Next(); behind.IsValid() {
			b = appendElement(b, behind, true)
		}
	}
	binary.NativeEndian.PutUint16(b[list:], uint16(len(b)-list))
	return b
}

func appendElement(b []byte, key netip.Addr, intervalEnd bool) []byte {
	size := key.BitLen() / 8
	length := 12 + size
	if intervalEnd {
		length += 8
	}
	nested := func(kind uint16, n int) {
		b = binary.NativeEndian.AppendUint16(b, uint16(n))
		b = binary.NativeEndian.AppendUint16(b, kind)
	}
	nested(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, length)
	if intervalEnd {
		nested(unix.NFTA_SET_ELEM_FLAGS, 8)
		b = binary.BigEndian.AppendUint32(b, unix.NFT_SET_ELEM_INTERVAL_END)
	}
	nested(unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, 8+size)
	nested(unix.NFTA_DATA_VALUE, 4+size)
	if size == 4 {
		a := key.As4()
		return append(b, a[:]...)
	}
	a := key.As16()
	return append(b, a[:]...)
}

// commit ends the transaction and waits for the kernel's word. Only the last
// message asks for one; a message that fails has one anyway, and comes first.
func (e *elementBatch) commit() error {
	if e.count == 0 {
		return nil
	}
	flags := binary.NativeEndian.Uint16(e.b[e.last+6:])
	binary.NativeEndian.PutUint16(e.b[e.last+6:], flags|unix.NLM_F_ACK)
	last, behind := e.seq, len(e.b)
	e.b = end(e.header(e.b, endBatch, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES), behind)
	e.count = 0
	if err := e.send(e.b); err != nil {
		return fmt.Errorf("sending elements: %w", err)
	}
	err := e.messages(func(m message) (bool, error) {
		if m.kind != unix.NLMSG_ERROR {
			return true, nil
		}
		if err := m.failure(); err != nil {
			if errors.Is(err, syscall.EPERM) {
				return false, sentinel(err)
			}
			return false, fmt.Errorf("adding elements: %w", err)
		}
		return m.seq != last, nil
	})
	if errors.Is(err, syscall.ENOBUFS) {
		return nil // it may have taken effect; the read-back decides
	}
	return err
}
