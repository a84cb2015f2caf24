package eventlog

import "gatehouse/tpm/pcr"

// Replay computes the registers that the log leads to. Those without events
// are not in it, nor are PCR 17 to 22, which no log of the firmware begins.
func (l *Log) Replay() pcr.Values {
	out := make(pcr.Values)
	for _, e := range l.Events {
		if e.Type == NoAction || e.PCR >= 17 && e.PCR <= 22 {
			continue
		}
		old, begun := out[e.PCR]
		if !begun && e.PCR == 0 {
			old[pcr.Size-1] = l.locality
		}
		out[e.PCR] = pcr.Extend(old, e.Digest)
	}
	return out
}

// Differ lists the registers among indices that the log has events of and does
// not lead to: Old is what the log says, New what the TPM holds. A register
// that the log has no event of has to be as it was at power-on.
func (l *Log) Differ(now pcr.Values, indices ...int) []pcr.Change {
	replayed := l.Replay()
	var out []pcr.Change
	for _, i := range indices {
		value, ok := now[i]
		if ok && replayed[i] != value {
			out = append(out, pcr.Change{Index: i, Old: replayed[i], New: value})
		}
	}
	return out
}
