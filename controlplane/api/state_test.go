package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/controlplane/ca"
	"github.com/sallyport/sallyport/controlplane/ca/signed"
	"github.com/sallyport/sallyport/controlplane/store"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

// withMore adds items to what a store lists.
type withMore struct {
	store.Store
	more []store.Item
}

func (m *withMore) List(ctx context.Context, prefix string) ([]store.Item, int64, error) {
	items, rev, err := m.Store.List(ctx, prefix)
	for _, it := range m.more {
		if strings.HasPrefix(it.Key, prefix) {
			items = append(items, it)
		}
	}
	return items, rev, err
}

func (w *world) snapshot(t *testing.T, s *Server) *sallyportv1.Snapshot {
	t.Helper()
	sg := s.state.view().signed
	if err := signed.Verify(w.keys.Authority(ca.Host).Certificates, signed.Snapshot, sg); err != nil {
		t.Fatal(err)
	}
	var m sallyportv1.Snapshot
	if err := proto.Unmarshal(sg.GetPayload(), &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// TestView: a view is issued when something changed, and when asked to anew.
func TestView(t *testing.T) {
	w := the()
	s, err := w.serverOn(t.Context(), w.store, w.log)
	if err != nil {
		t.Fatal(err)
	}
	issued := func(f func() error) bool {
		t.Helper()
		next := s.state.next()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-next:
			return true
		default:
			return false
		}
	}
	first := w.snapshot(t, s)
	if first.GetCluster() != cluster || len(first.GetAuthorities()) != 3 || len(first.GetRoles()) < 3 || first.GetSettings().GetOfflineMaxAgeSeconds() != 3600 {
		t.Errorf("snapshot %v", first)
	}
	if issued(func() error { return s.state.reload(t.Context(), false) }) {
		t.Error("issued without a change")
	}
	if !issued(func() error { return s.state.reload(t.Context(), true) }) {
		t.Error("not issued anew")
	}
	w.lock(t, `{"user":"nobody-at-all"}`)
	if !issued(func() error { return s.state.reload(t.Context(), false) }) {
		t.Error("not issued after a change")
	}
	last := w.snapshot(t, s)
	if last.GetRevision() <= first.GetRevision() || len(last.GetLocks()) != len(first.GetLocks())+1 {
		t.Errorf("revision %d after %d, %d locks after %d", last.GetRevision(), first.GetRevision(), len(last.GetLocks()), len(first.GetLocks()))
	}
	if issued(func() error { return s.state.atLeast(t.Context(), 1<<62) }) {
		t.Error("a host that says it has seen the future costs a reload at once")
	}
	now := time.Now().Add(2 * time.Second)
	s.cfg.Now = func() time.Time { return now }
	// One host's word made auth send all others a snapshot, each second.
	if issued(func() error { return s.state.atLeast(t.Context(), 1<<62) }) {
		t.Error("others are woken for a host that says it has seen more")
	}
	seen := w.snapshot(t, s)
	if !seen.GetIssuedAt().AsTime().After(last.GetIssuedAt().AsTime()) {
		t.Error("no reload for a host that has seen more")
	}
	if s.state.atLeast(t.Context(), 1<<62); w.snapshot(t, s).GetIssuedAt().AsTime() != seen.GetIssuedAt().AsTime() {
		t.Error("a reload for each who says so")
	}
	now = now.Add(2 * time.Second)
	w.lock(t, `{"user":"nobody-at-all"}`) // by another auth process
	if !issued(func() error { return s.state.atLeast(t.Context(), 1<<62) }) {
		t.Error("a change that was found for one is not issued to all")
	}
	last = w.snapshot(t, s)
	if issued(func() error { return s.state.atLeast(t.Context(), last.GetRevision()) }) {
		t.Error("a reload for a host that has seen less")
	}
}

// TestViewOfOthers: what another auth process changes is seen without a call.
func TestViewOfOthers(t *testing.T) {
	w := the()
	name := "other-" + uuid.NewString()[:8]
	doc := `{"kind":"lock","version":"v2","metadata":{"name":"` + name + `"},"spec":{"target":{"user":"nobody-at-all"}}}`
	if _, err := w.store.Apply(t.Context(), store.Op{Key: "lock/" + name, Value: []byte(doc), Expect: store.Absent}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.store.Apply(context.Background(), store.Op{Key: "lock/" + name, Delete: true, Expect: store.Any})
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		next := w.server.state.next()
		for _, l := range w.server.state.view().locks {
			if l.GetName() == name {
				return
			}
		}
		select {
		case <-next:
		case <-ctx.Done():
			t.Fatal("the lock did not arrive")
		}
	}
}

// TestViewStays: what cannot be read leaves the last good view in force, and a
// caller is told that a change waits.
func TestViewStays(t *testing.T) {
	w := the()
	m := &withMore{Store: w.store}
	s, err := w.serverOn(t.Context(), m, w.log)
	if err != nil {
		t.Fatal(err)
	}
	good := s.state.view()
	for _, bad := range []store.Item{
		{Key: "role/broken", Value: []byte(`{"kind":"role","version":"v99","metadata":{"name":"broken"},"spec":{}}`)},
		{Key: "lock/broken", Value: []byte(`{`)},
	} {
		m.more = []store.Item{bad}
		if err := s.state.reload(t.Context(), true); err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("%s: %v", bad.Key, err)
		}
		if s.state.view() != good {
			t.Errorf("%s: another view", bad.Key)
		}
		admin := sallyportv1connect.NewAdminServiceClient(inProcess{s.Handler(nil), localAdminCaller()}.client(), base)
		name := "waits-" + uuid.NewString()[:8]
		doc := `{"kind":"lock","version":"v2","metadata":{"name":"` + name + `"},"spec":{"target":{"user":"nobody-at-all"}}}`
		_, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{Document: doc}))
		codeIs(t, "put", err, connect.CodeUnavailable)
		if err == nil || !strings.Contains(err.Error(), "not in force") {
			t.Errorf("told: %v", err)
		}
		if _, err := w.store.Apply(t.Context(), store.Op{Key: "lock/" + name, Delete: true, Expect: store.Any}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestErrors: a caller reads facts and hints of problems, and of other errors
// nothing; the log has them.
func TestErrors(t *testing.T) {
	w := the()
	var logged bytes.Buffer
	f := &failing{Store: w.store, prefix: "lock/"}
	s, err := New(t.Context(), Config{Store: f, CA: w.keys, Users: w.users, Tokens: w.tokens, Inventory: w.inventory, Audit: w.log, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	admin := sallyportv1connect.NewAdminServiceClient(inProcess{s.Handler(nil), localAdminCaller()}.client(), base)
	put := func() error {
		_, err := admin.PutDocument(t.Context(), connect.NewRequest(&sallyportv1.PutDocumentRequest{
			Document: `{"kind":"lock","version":"v2","metadata":{"name":"` + uuid.NewString() + `"},"spec":{"target":{"user":"x"}}}`}))
		return err
	}
	f.err = errors.New("disk sdb7 at 10.1.2.3")
	err = put()
	codeIs(t, "plain error", err, connect.CodeInternal)
	if strings.Contains(fmt.Sprint(err), "sdb7") || !strings.Contains(logged.String(), "sdb7") {
		t.Errorf("told %q, logged %q", err, logged.String())
	}
	f.err = &sallyport.Problem{Kind: sallyport.ErrConflict, Fact: "the fact", Hint: "the hint", Cause: errors.New("the cause")}
	err = put()
	codeIs(t, "problem", err, connect.CodeAborted)
	var ce *connect.Error
	if !errors.As(err, &ce) || ce.Message() != "the fact" || ce.Meta().Get(hintHeader) != "the hint" {
		t.Errorf("told %v", err)
	}
}
