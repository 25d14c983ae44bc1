//go:build unix

package gateway

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport/dataplane/handover"
	"github.com/sallyport/sallyport/dataplane/relay"
	handoverv1 "github.com/sallyport/sallyport/wire/sallyport/handover/v1"
)

// TestLinksByID: it finds what a map finds, whatever comes and goes.
func TestLinksByID(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for name, next := range map[string]func(last uint64) uint64{
		"in a row": func(last uint64) uint64 { return last + 1 },
		"all":      func(uint64) uint64 { return r.Uint64() },
		"few":      func(uint64) uint64 { return r.Uint64N(40) },
		"strides":  func(last uint64) uint64 { return last + 1<<32 },
	} {
		t.Run(name, func(t *testing.T) {
			var s linksByID
			in := map[uint64]*link{}
			var ids []uint64
			id := uint64(0)
			for range 4000 {
				if len(ids) > 0 && r.IntN(5) < 2 {
					i := r.IntN(len(ids))
					gone := ids[i]
					ids[i] = ids[len(ids)-1]
					ids = ids[:len(ids)-1]
					if s.remove(gone) != in[gone] || s.remove(gone) != nil || s.of(gone) != nil {
						t.Fatalf("%d: not what was put in, or it is still there", gone)
					}
					delete(in, gone)
				} else if id = next(id); in[id] == nil {
					of, err := relay.Adopt(stillLoop{}, relay.State{ID: id}, nil)
					check(t, err)
					l := &link{relay: of}
					s.add(l)
					in[id], ids = l, append(ids, id)
				}
				if s.len() != len(in) {
					t.Fatalf("%d, not %d", s.len(), len(in))
				}
				if len(ids) > 0 {
					if some := ids[r.IntN(len(ids))]; s.of(some) != in[some] {
						t.Fatalf("%d is not found", some)
					}
				}
			}
			for id, l := range in {
				if s.of(id) != l {
					t.Errorf("%d is not found", id)
				}
			}
			for range 100 {
				if id := r.Uint64(); s.of(id) != in[id] {
					t.Errorf("%d is not there, and found", id)
				}
			}
		})
	}
	if s := (linksByID{}); s.of(1) != nil || s.remove(1) != nil {
		t.Error("there is something where nothing is")
	}
}

// stillLoop watches nothing.
type stillLoop struct{ relay.Loop }

func (stillLoop) Watch(int, relay.Handler) error { return nil }
func (stillLoop) Now() time.Time                 { return time.Time{} }

// TestTakeMemory: while two processes have what one has, the new one takes little
// more than what it keeps: relays, links, and the loop's table of them.
func TestTakeMemory(t *testing.T) {
	const some, most = 2000, 395 // relays, and bytes for each: 176 of a relay, 80 of its link, 60 in the loop's tables, and in ours 16, which grow; it was 427
	loops := newLoops(t, relay.NewDefault, 1)
	h, err := Inherit(Config{Cluster: cluster, Listen: []string{"127.0.0.1:0"}, Loops: loops})
	check(t, err)
	defer h.Gateway().Close()
	defer h.Close()
	var records []handover.Record
	peer := []byte{192, 0, 2, 7, 1, 2}
	for i := 0; i < some; i += relaysRecord {
		m := &handoverv1.GatewayRelays{}
		var fds []int
		for id := i; id < min(i+relaysRecord, some); id++ {
			m.Relay = append(m.Relay, &handoverv1.GatewayRelay{Id: uint64(id + 1), Account: "shop.example.com", Peer: peer, Started: time.Now().UnixNano(), Worded: true})
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			check(t, err)
			fds = append(fds, pair[0], pair[1])
		}
		body, err := proto.Marshal(m)
		check(t, err)
		records = append(records, handover.Record{Part: partName, Kind: uint32(handoverv1.GatewayKind_GATEWAY_KIND_RELAYS), Body: body, FDs: fds})
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, r := range records {
		check(t, h.Take(r))
	}
	runtime.ReadMemStats(&after)
	got := float64(after.TotalAlloc-before.TotalAlloc) / some
	t.Logf("%.0f bytes for each", got)
	if got > most {
		t.Errorf("%.0f bytes for each relay, want %d at most", got, most)
	}
}
