package supervise

import (
	"fmt"
	"testing"
)

// TestState: what is heard and reaped, in which order, decides the exit code.
func TestState(t *testing.T) {
	type event struct {
		m         message
		pid, code int // of a child that has ended; pid 0 for none
	}
	main := func(generation uint64, pid int) event { return event{m: message{kindMain, generation, pid}} }
	over := func(generation uint64, code int) event { return event{m: message{kindOver, generation, code}} }
	last := event{m: message{kind: kindLast}}
	dead := func(pid, code int) event { return event{pid: pid, code: code} }
	many := []event{main(1, 10), dead(10, 7)}
	for i := range 3 * codesMost {
		many = append(many, dead(1000+i, 0))
	}
	tests := []struct {
		name   string
		events []event
		main   int
		code   int
	}{
		{"ends", []event{main(1, 10), dead(10, 0)}, 10, 0},
		{"is killed", []event{main(1, 10), dead(10, 137)}, 10, 137},
		{"ends in order", []event{main(1, 10), over(1, 0), dead(10, 0)}, 10, 0},
		{"the status is truer than the word", []event{main(1, 10), over(1, 0), dead(10, 139)}, 10, 139},
		{"is another's child", []event{main(1, 10), over(1, 3)}, 10, 3},
		{"is another's child, killed", []event{main(1, 10)}, 10, 137},
		{"is another's child, crashes", []event{main(1, 10), last, last}, 10, 2},
		{"crashes at its end", []event{main(1, 10), over(1, 0), last}, 10, 0},
		{"crashes, and is ours", []event{main(1, 10), last, dead(10, 2)}, 10, 2},
		{"its successor is killed", []event{main(1, 10), last, main(2, 11)}, 11, 137},
		{"upgrade", []event{main(1, 10), main(2, 11), dead(10, 0), dead(11, 5)}, 11, 5},
		{"named twice", []event{main(1, 10), main(2, 11), main(2, 11), dead(11, 0)}, 11, 0},
		{"named late", []event{main(1, 10), main(2, 11), main(3, 12), main(2, 11), dead(12, 4), dead(11, 0)}, 12, 4},
		{"ends before it is named", []event{main(1, 10), dead(11, 6), main(2, 11), dead(10, 0)}, 11, 6},
		{"the predecessor's word", []event{main(1, 10), over(1, 9), main(2, 11)}, 11, 137},
		{"a late word", []event{main(1, 10), main(2, 11), over(1, 9)}, 11, 137},
		{"nobody", nil, 0, Lost},
		{"no process", []event{main(1, 10), main(2, 0), main(3, -1), dead(10, 0)}, 10, 0},
		{"many children", many, 10, 7},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s State
			for _, e := range tt.events {
				if e.pid != 0 {
					s.ended(e.pid, e.code)
				} else {
					s.heard(e.m)
				}
			}
			if s.Main != tt.main || s.code() != tt.code {
				t.Errorf("main %d, code %d; want %d, %d", s.Main, s.code(), tt.main, tt.code)
			}
			if len(s.codes) > codesMost {
				t.Errorf("%d children are remembered", len(s.codes))
			}
		})
	}
}

func TestMessage(t *testing.T) {
	for _, m := range []message{{kindMain, 1, 2}, {kindOver, 1<<64 - 1, 1<<31 - 1}, {kindOver, 0, -1}} {
		b := m.encode()
		if got, err := decode(b); err != nil || got != m || len(b) > maxMessage {
			t.Errorf("%v: %v, %v, %d bytes", m, got, err, len(b))
		}
	}
	if m, err := decode([]byte("kill 1 2")); err == nil {
		t.Errorf("what a later version may say is %v", m)
	}
	for _, text := range []string{"", "main", "main 1", "main 1 2 3", "main -1 2", "main 1 x", fmt.Sprintf("main 1 %d0", uint64(1<<63)),
		"panic: ", "fatal error: ", "goroutine 1 [", "SIGSEGV: segmentation violation\n", "\n"} {
		if m, err := decode([]byte(text)); err != nil || m.kind != kindLast {
			t.Errorf("%q is %v, %v", text, m, err)
		}
	}
}
