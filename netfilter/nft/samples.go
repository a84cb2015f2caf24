package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"gatehouse/netfilter"
)

// sampleBuffer holds some hundred samples for a reader that is late; what is
// more is lost, and the reader's Read says ENOBUFS once. It is the kernel's
// memory and counts several times a sample's size.
const sampleBuffer = 256 << 10

const (
	logConfig   = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG
	logCommand  = 1                            // NFULA_CFG_CMD
	logMode     = 2                            // NFULA_CFG_MODE
	logQueue    = 5                            // NFULA_CFG_QTHRESH
	commandBind = 1                            // NFULNL_CFG_CMD_BIND
	copyPacket  = 2                            // NFULNL_COPY_PACKET
)

// OpenSamples opens the socket on which the kernel hands out the heads of
// packets that rules sample. Each Read gives a datagram for
// netfilter.DecodeSamples and takes 64 KiB at most. The file can be inherited by
// a process without rights; the samples end when it is closed everywhere. There
// is one reader for each network namespace: a second one is refused with EPERM.
func OpenSamples() (*os.File, error) {
	w, err := dial()
	if err != nil {
		return nil, fmt.Errorf("listening for samples of dropped packets: %w", err)
	}
	mode := binary.BigEndian.AppendUint32(nil, netfilter.SampleLength)
	if err = w.configure(logCommand, []byte{commandBind}); errors.Is(err, unix.EPERM) {
		w.close()
		return nil, fmt.Errorf("listening for samples of dropped packets: no CAP_NET_ADMIN, or another program has nflog group %d: %w", netfilter.SampleGroup, err)
	}
	err = errors.Join(err,
		w.configure(logMode, append(mode, copyPacket, 0)),
		w.configure(logQueue, binary.BigEndian.AppendUint32(nil, 1)), // each at once
		unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sampleBuffer),
		unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}),
		unix.SetNonblock(w.fd, true))
	if err != nil {
		w.close()
		return nil, fmt.Errorf("listening for samples of dropped packets: %w", err)
	}
	return os.NewFile(uintptr(w.fd), "drops"), nil
}

// configure sends one setting of the group and waits for the answer; a sample
// may come before it.
func (w *wire) configure(kind uint16, value []byte) error {
	b := w.header(nil, logConfig, unix.NLM_F_REQUEST|unix.NLM_F_ACK, unix.AF_UNSPEC, netfilter.SampleGroup)
	asked := w.seq
	if err := w.send(end(attribute(b, kind, value), 0)); err != nil {
		return err
	}
	return w.messages(func(m message) (bool, error) {
		if m.kind != unix.NLMSG_ERROR || m.seq != asked {
			return true, nil
		}
		return false, m.failure()
	})
}
