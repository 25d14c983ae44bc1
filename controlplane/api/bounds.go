package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// bound is how much of one request is taken in. A request is judged by the
// table before any of it is read; this is for callers who may call.
type bound struct {
	bytes int // of the message, as it is after decompression

	// elements of its lists and maps: an empty one takes two bytes on the
	// wire and up to 250 in memory.
	elements int

	// atOnce is how many calls of the method one host or user has under way,
	// where they or their answers are large; the others wait unread. 0: any
	// number.
	atOnce int64

	// stream: the call goes on for long after its request has been read.
	stream bool
}

// A host announces from one goroutine, and ships each spool from one; while
// it is upgraded there is a second process.
const hostsAtOnce = 2

// A search's answer has up to 32 MiB, until its client has read it.
const searchesAtOnce = 2

// boundOf says how large a request of a procedure may be.
func boundOf(procedure string) bound {
	switch procedure {
	case sallyportv1connect.HostServiceAnnounceProcedure:
		// inventory.MaxResources of 8 KiB each, with 64 labels.
		return bound{bytes: 8 << 20, elements: 1 << 17, atOnce: hostsAtOnce}
	case sallyportv1connect.HostServiceAppendEventsProcedure:
		// 1 MiB of at most 512 events in one call, or one event; more in JSON.
		return bound{bytes: 2 << 20, elements: 1 << 12, atOnce: hostsAtOnce}
	case sallyportv1connect.HostServiceReportPresenceProcedure:
		// All agents of a large gateway: 150,000 of 50 bytes.
		return bound{bytes: 8 << 20, elements: 1 << 18, atOnce: hostsAtOnce}
	case sallyportv1connect.AdminServiceSearchEventsProcedure:
		return bound{bytes: 1 << 20, elements: 1 << 16, atOnce: searchesAtOnce}
	}
	hosts := bound{bytes: 2 * maxVisitor, elements: 1 << 10} // a user's certificate, in JSON
	if procedure == sallyportv1connect.HostServiceWatchSnapshotProcedure {
		hosts.stream = true
		return hosts
	}
	service, _, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	switch service {
	case sallyportv1connect.AdminServiceName:
		return bound{bytes: 1 << 20, elements: 1 << 16} // a document of 512 KiB, in JSON
	case sallyportv1connect.HostServiceName:
		return hosts
	}
	return bound{bytes: 64 << 10, elements: 1 << 10} // strangers, visitors, and users' small questions
}

// options make a handler keep to the bound.
func (b bound) options() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithReadMaxBytes(b.bytes),
		connect.WithCodec(binaryCodec{b.elements}),
		connect.WithCodec(jsonCodec{"json", b.elements}),
		connect.WithCodec(jsonCodec{"json; charset=utf-8", b.elements}),
	}
}

// binaryCodec is connect's own for "proto", and counts before it decodes.
type binaryCodec struct{ most int }

func (binaryCodec) Name() string { return "proto" }

func (binaryCodec) Marshal(v any) ([]byte, error) { return proto.Marshal(v.(proto.Message)) }

func (binaryCodec) MarshalAppend(b []byte, v any) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend(b, v.(proto.Message))
}

func (c binaryCodec) Unmarshal(b []byte, v any) error {
	m := v.(proto.Message)
	if elements(b, m.ProtoReflect().Descriptor(), c.most) > c.most {
		return tooMany(c.most)
	}
	return proto.Unmarshal(b, m)
}

// elements counts those of all lists and maps in an encoded message, up to
// one more than most. What stands behind bytes that are no message is not
// counted, and not decoded either.
func elements(b []byte, d protoreflect.MessageDescriptor, most int) int {
	n := 0
	for len(b) > 0 && n <= most {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return n
		}
		b = b[size:]
		field := d.Fields().ByNumber(number)
		if size = protowire.ConsumeFieldValue(number, kind, b); size < 0 {
			return n
		}
		value := b[:size]
		b = b[size:]
		if field == nil {
			continue
		}
		if field.Cardinality() == protoreflect.Repeated {
			n++
		}
		if kind == protowire.BytesType && field.Message() != nil {
			inner, _ := protowire.ConsumeBytes(value)
			n += elements(inner, field.Message(), most-n)
		}
	}
	return n
}

// jsonCodec is connect's own for JSON, and counts before it decodes.
type jsonCodec struct {
	name string
	most int
}

func (c jsonCodec) Name() string { return c.name }

func (jsonCodec) Marshal(v any) ([]byte, error) { return protojson.Marshal(v.(proto.Message)) }

func (jsonCodec) MarshalAppend(b []byte, v any) ([]byte, error) {
	return protojson.MarshalOptions{}.MarshalAppend(b, v.(proto.Message))
}

// Unmarshal counts braces: all that weighs more in memory than in JSON opens
// one.
func (c jsonCodec) Unmarshal(b []byte, v any) error {
	if len(b) == 0 {
		return errors.New("nothing is no JSON object")
	}
	if bytes.Count(b, []byte("{")) > c.most+1 {
		return tooMany(c.most)
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, v.(proto.Message))
}

func tooMany(most int) error { return fmt.Errorf("more than %d elements in lists", most) }

// turns bound what a host or user has under way at a time, however many connections
// and streams it opens. The zero value is ready.
type turns struct {
	mu      sync.Mutex
	callers map[turn]*queue
}

// turn is one caller's at one method, or at all.
type turn struct{ caller, procedure string }

type queue struct {
	places *semaphore.Weighted
	users  int // in it, or waiting; guarded by turns.mu
}

// take waits for n of most places, until ctx is done. leave gives them back.
func (t *turns) take(ctx context.Context, who turn, most, n int64) (leave func(), err error) {
	q := t.join(who, most)
	if q.places.Acquire(ctx, n) != nil {
		t.part(who, q)
		return nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "too many calls of this method at a time", Hint: "wait for the answer to one before the next"}
	}
	return func() {
		q.places.Release(n)
		t.part(who, q)
	}, nil
}

func (t *turns) join(who turn, most int64) *queue {
	t.mu.Lock()
	defer t.mu.Unlock()
	q := t.callers[who]
	if q == nil {
		if t.callers == nil {
			t.callers = map[turn]*queue{}
		}
		q = &queue{places: semaphore.NewWeighted(most)}
		t.callers[who] = q
	}
	q.users++
	return q
}

func (t *turns) part(who turn, q *queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(t.callers, who)
	}
}

// inTurn lets large requests in.
func (t *turns) inTurn(next http.Handler) http.Handler {
	refuse := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, most := callerOf(r.Context()), boundOf(r.URL.Path).atOnce
		if most == 0 || c.Identity.Kind == "" { // who has no certificate is refused
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), unaryTimeout)
		leave, err := t.take(ctx, turn{c.name(), r.URL.Path}, most, 1)
		cancel()
		if err != nil {
			_ = refuse.Write(w, r, refusal(err)) // who is gone needs no word
			return
		}
		defer leave()
		next.ServeHTTP(w, r)
	})
}
