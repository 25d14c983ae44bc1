package etcd

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge is a zapcore.Core that writes to our logger, one level quieter: what
// etcd finds worth telling its operator is detail here. Copies made by With
// share quiet and ends.
type bridge struct {
	log   *slog.Logger
	quiet *atomic.Bool // set before an orderly stop, which etcd logs as errors
	ends  *atomic.Bool // etcd's log has no next file; it tells that only here
}

func newBridge(log *slog.Logger) *bridge {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &bridge{log: log.With("part", "etcd"), quiet: new(atomic.Bool), ends: new(atomic.Bool)}
}

// zap is the logger to give to etcd. Where etcd would exit the process it
// panics, so that opening can report it; later it still ends the process.
func (b *bridge) zap() *zap.Logger {
	return zap.New(b, zap.WithFatalHook(zapcore.WriteThenPanic))
}

func (b *bridge) level(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.DPanicLevel:
		return slog.LevelError
	case l == zapcore.ErrorLevel && !b.quiet.Load():
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (b *bridge) Enabled(l zapcore.Level) bool {
	return l >= zapcore.ErrorLevel || l >= zapcore.InfoLevel && b.log.Enabled(context.Background(), b.level(l))
}

func (b *bridge) With(fields []zapcore.Field) zapcore.Core {
	return &bridge{log: b.log.With(attrs(fields)...), quiet: b.quiet, ends: b.ends}
}

func (b *bridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if b.Enabled(e.Level) {
		return ce.AddCore(e, b)
	}
	return ce
}

func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := b.level(e.Level)
	if e.Message == "failed to preallocate space when creating a new WAL" && !b.quiet.Load() {
		b.ends.Store(true)
		level = slog.LevelError
	}
	if level == slog.LevelWarn && tooEarly(e.Message, fields) {
		level = slog.LevelDebug
	}
	b.log.Log(context.Background(), level, e.Message, attrs(fields)...)
	return nil
}

// tooEarly says that etcd has looked for the version of a new store before its
// first entry was written to it. It looks again every few seconds.
func tooEarly(message string, fields []zapcore.Field) bool {
	return message == "failed to update storage version" && slices.ContainsFunc(fields, func(f zapcore.Field) bool {
		err, ok := f.Interface.(error)
		return ok && strings.HasSuffix(err.Error(), "missing term information")
	})
}

func (b *bridge) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	var out []any
	for _, f := range fields {
		f.AddTo(enc)
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
