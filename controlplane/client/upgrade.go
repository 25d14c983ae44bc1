package client

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// A host's directory in an upgrade:
//
//	old process                          new process
//	  writes                               OpenHost with Held: reads, does not write
//	Hold: all is on disk, writes stop
//	                                     Take: reads again what the old one knew last
//	Release: the way back                  (was killed)
//	Leave                                Release: writes from here on
//
// An old process that has left goes on watching snapshots, which its sessions
// need, and keeps them in memory. It asks for nothing that is written down:
// certificates are renewed, resources announced and database certificates kept
// by the new process alone, and a certificate of its own that comes to its end
// is read from what the new one has written.

// readEvery is how often a remnant looks for a renewed certificate.
const readEvery = time.Minute

// Hold stops writing to the directory. With an error nothing has changed: what
// this process knows could not be written, and the new one would know less.
func (h *Host) Hold() error {
	h.keeper.taking.Lock() // a snapshot that is in force already is written first
	defer h.keeper.taking.Unlock()
	if err := h.files.hold(); err != nil {
		return fmt.Errorf("%s: %w", h.cfg.Dir, err)
	}
	return nil
}

// Release writes to the directory from now on, first what has come since Hold.
func (h *Host) Release() error { return h.files.resume() }

// Leave leaves the directory to the new process for good.
func (h *Host) Leave() {
	h.files.leave()
	h.leave.Do(func() { close(h.left) })
}

// Take reads what the old process wrote until its Hold.
func (h *Host) Take() error {
	if err := h.readStanding(); err != nil {
		return err
	}
	if err := h.keeper.load(); err != nil {
		return err
	}
	if err := h.loadServed(); err != nil {
		return err
	}
	return h.database.loadAll()
}

// readStanding takes the standing on disk when it is of this host and newer.
func (h *Host) readStanding() error {
	path := filepath.Join(h.cfg.Dir, hostFile)
	var s standing
	found, err := readJSON(path, &s)
	if err != nil {
		return err
	}
	if !found {
		return ErrNotJoined
	}
	if err := s.check(h.cfg.Kind, h.keys); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	leaf, err := h.keys.leaf(s.Certificate)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	current := h.leaf()
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.ID != h.standing.ID || s.Cluster != h.standing.Cluster {
		return errors.New(path + ": the standing of another host")
	}
	if leaf.NotAfter.After(current.NotAfter) {
		h.standing = s
	}
	return nil
}

// readRenewed is renew for a remnant.
func (h *Host) readRenewed(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-h.left:
	}
	for sleepUntil(ctx, later(h.renewAt(), time.Now().Add(readEvery))) == nil {
		if err := h.readStanding(); err != nil {
			h.cfg.Log.Debug("renewed certificate not read", "error", err)
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
