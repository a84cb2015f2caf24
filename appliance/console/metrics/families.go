package metrics

import (
	"strings"
	"time"

	"gatehouse/appliance/control"
)

// snapshot is all that the figures are made of.
type snapshot struct {
	status   control.Status
	exposure control.Exposure
	lists    control.Lists
	expires  time.Time
	signIns  uint64
	tokens   uint64
}

// family is one metric. Its name is a promise: docs/metrics.md has the table.
type family struct {
	name   string
	kind   string // counter, gauge
	labels []string
	help   string
	values func(snapshot) []sample
}

type sample struct {
	value  float64
	labels []string
}

// one is a family without labels.
func one(f func(snapshot) float64) func(snapshot) []sample {
	return func(s snapshot) []sample { return []sample{{value: f(s)}} }
}

// known leaves out a figure that is not there.
func known(f func(snapshot) (float64, bool)) func(snapshot) []sample {
	return func(s snapshot) []sample {
		if v, ok := f(s); ok {
			return []sample{{value: v}}
		}
		return nil
	}
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func at(t time.Time) (float64, bool) { return float64(t.Unix()), !t.IsZero() }

const listPrefix = "list_"

// counters are those of the kernel's table that are not of a list, or those that are.
func counters(ofList bool, value func(control.Meant) uint64) func(snapshot) []sample {
	return func(s snapshot) (out []sample) {
		for _, c := range s.exposure.Counters {
			list, is := strings.CutPrefix(c.Name, listPrefix)
			switch {
			case is != ofList:
			case is:
				out = append(out, sample{float64(value(c)), []string{list}})
			default:
				out = append(out, sample{float64(value(c)), []string{c.Name, c.Class}})
			}
		}
		return out
	}
}

func packets(c control.Meant) uint64 { return c.Packets }
func octets(c control.Meant) uint64  { return c.Bytes }

func lists(value func(control.List) float64) func(snapshot) []sample {
	return func(s snapshot) (out []sample) {
		for _, l := range s.lists.Lists {
			out = append(out, sample{value(l), []string{l.Name}})
		}
		return out
	}
}

func roles(value func(control.RoleStatus) float64) func(snapshot) []sample {
	return func(s snapshot) (out []sample) {
		for _, r := range s.status.Roles {
			out = append(out, sample{value(r), []string{string(r.Name)}})
		}
		return out
	}
}

func reasons(s snapshot) (out []sample) {
	for _, r := range s.exposure.Reasons {
		out = append(out, sample{float64(r.Samples), []string{r.Reason}})
	}
	return out
}

func links(s snapshot) (out []sample) {
	for _, l := range s.status.Links {
		out = append(out, sample{flag(l.Carrier), []string{l.Name}})
	}
	return out
}

const (
	counter = "counter"
	gauge   = "gauge"
)

var families = []family{
	{"gatehouse_info", gauge, []string{"name", "version", "state", "trust_grade", "kernel"}, "Always 1; what the box is.", func(s snapshot) []sample {
		return []sample{{1, []string{s.status.Name, s.status.Version, string(s.status.State), s.status.Trust.Grade, s.status.Kernel}}}
	}},
	{"gatehouse_start_time_seconds", gauge, nil, "When the program started, as Unix time.", known(func(s snapshot) (float64, bool) { return at(s.status.Started) })},
	{"gatehouse_time_seconds", gauge, nil, "The box's clock, as Unix time.", known(func(s snapshot) (float64, bool) { return at(s.status.Now) })},
	{"gatehouse_clock_trusted", gauge, nil, "1 if somebody confirmed the clock.", one(func(s snapshot) float64 { return flag(s.status.Clock.Trusted) })},
	{"gatehouse_clock_servers", gauge, nil, "Time servers that agreed.", one(func(s snapshot) float64 { return float64(s.status.Clock.Servers) })},
	{"gatehouse_firewall_in_kernel", gauge, nil, "1 if the kernel holds the rules.", one(func(s snapshot) float64 { return flag(s.exposure.InKernel) })},
	{"gatehouse_firewall_packets_total", counter, []string{"counter", "class"}, "Packets by counter of the rules, since they were loaded.", counters(false, packets)},
	{"gatehouse_firewall_bytes_total", counter, []string{"counter", "class"}, "Bytes by counter of the rules, since they were loaded.", counters(false, octets)},
	{"gatehouse_list_packets_total", counter, []string{"list"}, "Packets that a list was the first to let in.", counters(true, packets)},
	{"gatehouse_list_bytes_total", counter, []string{"list"}, "Bytes that a list was the first to let in.", counters(true, octets)},
	{"gatehouse_list_ranges", gauge, []string{"list"}, "Ranges of a list after merging.", lists(func(l control.List) float64 { return float64(l.Ranges) })},
	{"gatehouse_list_enabled", gauge, []string{"list"}, "1 if the list is on.", lists(func(l control.List) float64 { return flag(l.Enabled) })},
	{"gatehouse_allowlists_enabled", gauge, nil, "1 if lists judge who comes in.", one(func(s snapshot) float64 { return flag(s.lists.Enabled) })},
	{"gatehouse_allowlists_waiting", gauge, nil, "1 if a change waits to be kept.", one(func(s snapshot) float64 { return flag(s.lists.Candidate != nil) })},
	{"gatehouse_refused_samples_total", counter, []string{"reason"}, "Refused packets that were sampled, at most 20 a second.", reasons},
	{"gatehouse_refused_samples_lost_total", counter, nil, "Times that samples were lost.", one(func(s snapshot) float64 { return float64(s.exposure.Lost) })},
	{"gatehouse_refused_samples_damaged_total", counter, nil, "Samples that could not be read.", one(func(s snapshot) float64 { return float64(s.exposure.Damaged) })},
	{"gatehouse_connections_opened_total", counter, nil, "Connections opened to the web ports; on our own image.", known(func(s snapshot) (float64, bool) { return float64(s.exposure.Opened), !s.status.Hosted })},
	{"gatehouse_role_running", gauge, []string{"role"}, "1 if the process runs.", roles(func(r control.RoleStatus) float64 { return flag(r.State == "running") })},
	{"gatehouse_role_restarts_total", counter, []string{"role"}, "Times that the process was started again.", roles(func(r control.RoleStatus) float64 { return float64(r.Restarts) })},
	{"gatehouse_role_changed_time_seconds", gauge, []string{"role"}, "Since when the process is as it is, as Unix time.", roles(func(r control.RoleStatus) float64 { return float64(r.Since.Unix()) })},
	{"gatehouse_link_up", gauge, []string{"link"}, "1 if the link has a carrier.", links},
	{"gatehouse_memory_size_bytes", gauge, nil, "Memory of the machine.", known(func(s snapshot) (float64, bool) { return float64(s.status.Memory.Total), s.status.Memory.Total > 0 })},
	{"gatehouse_memory_available_bytes", gauge, nil, "Memory that programs can still have.", known(func(s snapshot) (float64, bool) { return float64(s.status.Memory.Available), s.status.Memory.Total > 0 })},
	{"gatehouse_data_size_bytes", gauge, nil, "Size of the data volume.", known(func(s snapshot) (float64, bool) { return float64(s.status.Volume.Size), s.status.Volume.Size > 0 })},
	{"gatehouse_data_free_bytes", gauge, nil, "What is free of it.", known(func(s snapshot) (float64, bool) { return float64(s.status.Volume.Free), s.status.Volume.Size > 0 })},
	{"gatehouse_data_healthy", gauge, nil, "0 if something is wrong with the data volume.", one(func(s snapshot) float64 { return flag(s.status.Volume.Problem == "") })},
	{"gatehouse_audit_entries_total", counter, nil, "Entries of the audit log: the number of its head.", one(func(s snapshot) float64 { return float64(s.status.Audit.Sequence) })},
	{"gatehouse_audit_signed_entries_total", counter, nil, "Entries that a signed checkpoint covers.", one(func(s snapshot) float64 { return float64(s.status.Audit.Checkpoint) })},
	{"gatehouse_audit_last_time_seconds", gauge, nil, "When the newest entry was written, as Unix time.", known(func(s snapshot) (float64, bool) { return at(s.status.Audit.At) })},
	{"gatehouse_sign_in_failures_total", counter, nil, "Wrong passwords and codes since the console started.", one(func(s snapshot) float64 { return float64(s.signIns) })},
	{"gatehouse_token_failures_total", counter, nil, "Tokens that were not valid since the console started.", one(func(s snapshot) float64 { return float64(s.tokens) })},
	{"gatehouse_certificate_expiry_time_seconds", gauge, nil, "When the certificate of the page ends, as Unix time.", known(func(s snapshot) (float64, bool) { return at(s.expires) })},
}
