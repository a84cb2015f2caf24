package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a netlink socket to nf_tables for what is large: google/nftables
// holds all elements and answers in memory several times over, and writes a
// length past 65535 into 16 bits without a word.
type wire struct {
	fd      int
	seq     uint32
	receive []byte
}

// receiveSize takes the largest part of a dump that the kernel makes (32 KiB).
const receiveSize = 64 << 10

// patience bounds the wait for the kernel's answer; a batch takes milliseconds.
const patience = time.Minute

func dial() (*wire, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("opening a netlink socket: %w", sentinel(err))
	}
	w := &wire{fd: fd, receive: make([]byte, receiveSize)}
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, writeBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err != nil {
		w.close()
		return nil, fmt.Errorf("preparing a netlink socket: %w", sentinel(err))
	}
	return w, nil
}

func (w *wire) close() { _ = unix.Close(w.fd) }

func (w *wire) send(b []byte) error {
	for {
		err := unix.Sendto(w.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// A message is what the kernel says; data is valid until the next one.
type message struct {
	kind, flags uint16
	seq         uint32
	data        []byte
}

// messages calls f for each message that comes, until it returns false.
func (w *wire) messages(f func(message) (bool, error)) error {
	for {
		n, _, err := unix.Recvfrom(w.fd, w.receive, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for the kernel: %w", err)
		}
		for b := w.receive[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(b))
			if length < unix.NLMSG_HDRLEN || length > len(b) {
				return fmt.Errorf("a netlink message of %d bytes in %d", length, len(b))
			}
			m := message{kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
				seq: binary.NativeEndian.Uint32(b[8:]), data: b[unix.NLMSG_HDRLEN:length]}
			if more, err := f(m); err != nil || !more {
				return err
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// failure is the error of an acknowledgement, nil if it is a good one.
func (m message) failure() error {
	if len(m.data) < 4 {
		return errors.New("an acknowledgement without a code")
	}
	if code := int32(binary.NativeEndian.Uint32(m.data)); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// header begins a message; its length is set when it is ended.
func (w *wire) header(b []byte, kind, flags uint16, family byte, resource uint16) []byte {
	w.seq++
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, w.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, family, unix.NFNETLINK_V0)
	return binary.BigEndian.AppendUint16(b, resource)
}

// end sets the length of the message that began at an offset.
func end(b []byte, begin int) []byte {
	binary.NativeEndian.PutUint32(b[begin:], uint32(len(b)-begin))
	return pad(b)
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attribute appends one; values here are shorter than 65532 bytes.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return pad(append(b, value...))
}

const typeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// attributes calls f for each of a list, until it returns false.
func attributes(b []byte, f func(kind uint16, value []byte) bool) {
	for len(b) >= 4 {
		length := int(binary.NativeEndian.Uint16(b))
		if length < 4 || length > len(b) || !f(binary.NativeEndian.Uint16(b[2:])&typeMask, b[4:length]) {
			return
		}
		b = b[min((length+3)&^3, len(b)):]
	}
}
