package boot

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	"gatehouse/appliance/lists"
	"gatehouse/appliance/monitor"
	"gatehouse/appliance/supervise"
	"gatehouse/netfilter"
	"gatehouse/netfilter/xdp"
)

// listPaths says where the files of the allowlists are, and the file by which
// gateway and console learn who may come in.
func listPaths(p *supervise.Paths) {
	p.Lists = filepath.Join(p.Data, "lists")
	p.Admission = filepath.Join(filepath.Dir(p.Control), "lists", "admission")
}

// lists opens the folder and says how the filter role is run. A folder that does not
// open closes the box to all but its own networks, and does not silence it.
func (r *roles) lists() *monitor.Lists {
	folder, err := lists.Open(r.paths.Lists)
	if err != nil {
		r.log.Error("the allowlists cannot be read", "err", err)
		folder = lists.Closed(r.paths.Lists, err)
	}
	paths, why := r.paths, "hosted, the links are their owner's"
	if r.form == netfilter.Box {
		if err := xdp.Possible(); err != nil {
			why = err.Error()
		} else {
			paths.Stage = xdp.Folder
		}
	}
	spec := supervise.Filter(paths, r.options)
	return &monitor.Lists{Folder: folder, Files: r.hostLists, Filter: func(ctx context.Context, o lists.Order) (lists.Answer, error) {
		o.Admission, o.Form, o.Ports = r.paths.Admission, r.form, r.ports
		o.Stage, o.NoStage = paths.Stage, why
		order, err := json.Marshal(o)
		if err != nil {
			return lists.Answer{}, fmt.Errorf("asking the filter: %w", err)
		}
		output, err := r.reaper.Once(ctx, spec, string(order))
		if err != nil {
			return lists.Answer{}, err
		}
		return answerOf(output)
	}}
}

// answerOf reads the last line; what comes before it went to the log.
func answerOf(output string) (lists.Answer, error) {
	var a lists.Answer
	line := output[strings.LastIndexByte(output, '\n')+1:]
	if err := json.Unmarshal([]byte(line), &a); err != nil {
		return a, fmt.Errorf("the filter answered what is no answer: %w", err)
	}
	return a, nil
}
