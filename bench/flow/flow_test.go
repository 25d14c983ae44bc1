package flow

import (
	"testing"
	"time"

	"github.com/sallyport/sallyport/alpn"
)

func TestHelloFor(t *testing.T) {
	b, err := HelloFor(SinkName)
	if err != nil {
		t.Fatal(err)
	}
	var h alpn.Hello
	if need, err := h.Parse(b); need != 0 || err != nil || string(h.ServerName()) != SinkName || !h.Offers("h2") {
		t.Errorf("need %d, %v, name %q", need, err, h.ServerName())
	}
}

func TestLatencies(t *testing.T) {
	var all []time.Duration
	for i := range 100 {
		all = append(all, time.Duration(100-i)*time.Microsecond)
	}
	if got, want := latencies(all), (Latencies{P50: 50, P90: 90, P99: 99, Max: 100}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := latencies(all[:1]); got != (Latencies{1, 1, 1, 1}) {
		t.Errorf("of one: %+v", got)
	}
	if got := latencies(nil); got != (Latencies{}) {
		t.Errorf("of none: %+v", got)
	}
}

func TestJobCheck(t *testing.T) {
	good := Job{Conns: 1, Window: time.Second}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for name, spoil := range map[string]func(*Job){
		"no connection": func(j *Job) { j.Conns = 0 }, "too many": func(j *Job) { j.Conns = 1e6 }, "held": func(j *Job) { j.Held = -1 },
		"no window": func(j *Job) { j.Window = 0 }, "warm": func(j *Job) { j.Warm = -1 }, "rate": func(j *Job) { j.Rate = -1 }, "sources": func(j *Job) { j.Sources = 999 },
	} {
		j := good
		spoil(&j)
		if j.check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
