package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport/controlplane/audit"
	sallyportv1 "github.com/sallyport/sallyport/wire/sallyport/v1"
	"github.com/sallyport/sallyport/wire/sallyport/v1/sallyportv1connect"
)

const (
	shipBatch   = 512
	shipBytes   = 1 << 20 // of one call, or one event
	shipTimeout = 30 * time.Second

	// shipEvery is the time from one call to the next while there is little to
	// send: a call costs both sides more than the events in it. The first
	// event after a pause goes at once, and a backlog does not wait.
	shipEvery = 50 * time.Millisecond
)

// Spool is the part of audit.Spool that the shipper uses.
type Spool interface {
	ID() string
	Next(ctx context.Context, after uint64, max int) ([]audit.Record, error)
	Acknowledge(sequence uint64) error
}

// Ship sends the spool's events to auth in order until ctx is done, and lets
// the spool forget what auth has made durable.
func Ship(ctx context.Context, s Spool, api sallyportv1connect.HostServiceClient, log *slog.Logger) error {
	var done uint64 // acknowledged by auth in this run
	return retrying(ctx, log, "ship audit events", func(ctx context.Context, progress func()) error {
		for {
			records, err := s.Next(ctx, done, shipBatch)
			if err != nil {
				return err
			}
			if len(records) == 0 {
				return errors.New("the spool gave nothing to send")
			}
			records = fitting(records)
			next := time.Now().Add(shipEvery)
			acknowledged, err := ship(ctx, s.ID(), records, api)
			if err != nil {
				return err
			}
			first, last := records[0].Sequence, records[len(records)-1].Sequence
			if acknowledged < first {
				return fmt.Errorf("auth acknowledged event %d when it was sent %d to %d", acknowledged, first, last)
			}
			// Auth may have more from a run that ended before it heard so.
			// What was not sent in this one is not forgotten for that.
			acknowledged = min(acknowledged, last)
			if err := s.Acknowledge(acknowledged); err != nil {
				return err
			}
			done = acknowledged
			progress()
			if much(records) {
				continue
			}
			if err := sleepUntil(ctx, next); err != nil {
				return err
			}
		}
	})
}

// fitting is as much of a batch as one call may carry.
func fitting(records []audit.Record) []audit.Record {
	size := 0
	for i, r := range records {
		if size += len(r.JSON); size > shipBytes && i > 0 {
			return records[:i]
		}
	}
	return records
}

// much says that a call carried so much that more is likely to wait.
func much(records []audit.Record) bool {
	size := 0
	for _, r := range records {
		size += len(r.JSON)
	}
	return len(records) == shipBatch || size > shipBytes/2
}

func ship(ctx context.Context, spool string, records []audit.Record, api sallyportv1connect.HostServiceClient) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, shipTimeout)
	defer cancel()
	req := &sallyportv1.AppendEventsRequest{Spool: spool}
	for _, r := range records {
		req.Events = append(req.Events, &sallyportv1.SpooledEvent{Sequence: r.Sequence, Json: r.JSON})
	}
	resp, err := api.AppendEvents(ctx, connect.NewRequest(req))
	if err != nil {
		return 0, problem(err)
	}
	return resp.Msg.GetAcknowledged(), nil
}
