package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

// A store that could not be opened, on a full disk for example, ended the program
// with a panic instead of the reason.
func TestStoreThatCannotBeOpened(t *testing.T) {
	cfg := authOnly(t)
	dir := filepath.Join(cfg.DataDir, "auth")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etcd"), []byte("a file where a directory belongs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openAuth(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a store that is a file was opened")
	}
}

// emitted keeps events.
type emitted []sallyport.Event

func (l *emitted) Emit(_ context.Context, e sallyport.Event, durable bool) error {
	if !durable {
		return errors.New("not waited for")
	}
	*l = append(*l, e)
	return nil
}

// TestClaims: that a person has a device for codes now was no event.
func TestClaims(t *testing.T) {
	for device, want := range map[string][]string{"": {"T1005I"}, "device-1": {"T1005I", "T1006I"}} {
		var log emitted
		if err := (claims{"gw.test", &log}).record(t.Context(), "alice", device, netip.MustParseAddr("192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range log {
			got = append(got, e.Code)
			if e.User != "alice" || e.UserKind != "human" || e.Cluster != "gw.test" || e.Addr != "192.0.2.1" {
				t.Errorf("%+v", e)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("device %q: %v, want %v", device, got, want)
		}
		if with, ok := log[0].Fields["with_mfa"]; ok != (device != "") || ok && with != device {
			t.Errorf("device %q: with_mfa %v", device, with)
		}
		if last := log[len(log)-1]; device != "" && (last.Name != "mfa.add" || last.Fields["mfa_device_uuid"] != device || last.Fields["mfa_device_type"] != "TOTP") {
			t.Errorf("%+v", last)
		}
	}
}

// TestStoreShown: how much auth's store has and may have is in the status, in the
// metrics, and configured.
func TestStoreShown(t *testing.T) {
	cfg := authOnly(t)
	quota := 100
	cfg.Auth.Etcd.QuotaMiB = &quota
	log := slog.New(slog.DiscardHandler)
	a, err := openAuth(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	n := newNode(cfg, log)
	n.shownAuth.Store(a)
	s := n.status()
	if got := s.Auth.Store; got == nil || got.Quota != 100<<20 || got.Reserve != 100<<20/16 || got.Bytes <= 0 || got.InUse <= 0 || got.InUse > got.Bytes {
		t.Errorf("%+v", got)
	}
	var out strings.Builder
	if err := s.print(&out); err != nil || !strings.Contains(out.String(), " in use, of 100\n") {
		t.Errorf("%v: %s", err, &out)
	}
	metrics := []string{"sallyport_store_bytes", "sallyport_store_in_use_bytes", "sallyport_store_quota_bytes"}
	got := gather(t, newBook(n))
	for _, name := range metrics {
		if got[name] == nil {
			t.Errorf("no %s", name)
		}
	}
	if err := a.shut(); err != nil {
		t.Fatal(err)
	}
	got = gather(t, newBook(n))
	for _, name := range metrics {
		if got[name] != nil {
			t.Errorf("%s of a closed store", name)
		}
	}
}
