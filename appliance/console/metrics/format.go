package metrics

import (
	"strconv"
	"strings"
)

// The two text forms. They differ in the names of counters' families and in an
// end mark (OpenMetrics 1.0; Prometheus text format 0.0.4).
const (
	plainType = "text/plain; version=0.0.4; charset=utf-8"
	openType  = "application/openmetrics-text; version=1.0.0; charset=utf-8"
)

// write writes families in the one form or the other.
func write(b *strings.Builder, open bool, families []family, s snapshot) {
	for _, f := range families {
		samples := f.values(s)
		if len(samples) == 0 {
			continue // nothing of the kind is known here
		}
		name := f.name
		if open {
			name = strings.TrimSuffix(name, "_total")
		}
		b.WriteString("# HELP " + name + " " + helpEscapes.Replace(f.help) + "\n# TYPE " + name + " " + f.kind + "\n")
		for _, one := range samples {
			b.WriteString(f.name)
			for i, label := range f.labels {
				b.WriteString(map[bool]string{true: "{", false: ","}[i == 0] + label + `="` + labelEscapes.Replace(one.labels[i]) + `"`)
			}
			if len(f.labels) > 0 {
				b.WriteByte('}')
			}
			b.WriteString(" " + strconv.FormatFloat(one.value, 'f', -1, 64) + "\n")
		}
	}
	if open {
		b.WriteString("# EOF\n")
	}
}

var (
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)
