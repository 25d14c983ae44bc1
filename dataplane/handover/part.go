package handover

import (
	"context"
	"time"
)

// Record is one thing that changes hands. Part is the name of the Giver and of
// the Taker. Body is an encoded message of wire/sallyport/handover/v1; Kind says
// which, and is the part's own. FDs are at most MaxFDs.
type Record struct {
	Part string
	Kind uint32
	Body []byte
	FDs  []int
}

const (
	// MaxFDs is how many descriptors one record may carry (SCM_MAX_FD is 253).
	MaxFDs = 240

	// MaxBody bounds a record's body.
	MaxBody = 96 << 10
)

// Writer takes records to the new process, in order. It may be used by several
// goroutines at once. Send does not close the descriptors: they can be closed,
// or go on being used, when it has returned. It blocks while more is under way
// than the new process has taken; ctx ends that.
type Writer interface {
	Send(ctx context.Context, r Record) error

	// TrySend is Send for a loop's thread: it does not block. It reports false
	// when the new process has to take something first.
	TrySend(r Record) (bool, error)
}

// Pacer is what a Writer can be besides, for a part that is in a hurry.
type Pacer interface {
	// Room returns when TrySend may have room again.
	Room(ctx context.Context) error

	// Taken returns when the new process has taken everything: what is sent next
	// waits for nothing.
	Taken(ctx context.Context) error
}

// Speaker is what a Giver can be besides: it is told, before Copy, which
// generation of records the new process reads.
type Speaker interface {
	Speak(generation uint32)
}

// Giver is a part of the old process.
type Giver interface {
	// Name is the same in every version.
	Name() string

	// Copy sends what is there, while the part goes on working, and returns
	// when little is left for Freeze. What ends later is taken back by a record
	// of the part's own.
	Copy(ctx context.Context, w Writer) error

	// Freeze stops the part and sends the rest. When it has returned nothing of
	// the part reads, writes, accepts or closes until Thaw or Leave. ctx has the
	// stage's deadline.
	Freeze(ctx context.Context, w Writer) error

	// Thaw goes on as before Copy: the new process is dead. It is called also
	// when Copy or Freeze has failed, or was never called.
	Thaw() error

	// Leave lets go of everything that has moved, so that no peer notices: the
	// new process has it. What cannot move stays and is for the remnant.
	Leave()
}

// Taker is a part of the new process.
type Taker interface {
	Name() string

	// Take gets one record, and owns its descriptors from the call on, also
	// when it fails. Body and the list of FDs are good until it returns: who
	// keeps them copies them. Nothing that is taken may be read or written yet.
	Take(r Record) error

	// Complete is called when the part's stage has been sent, and returns when
	// the part could start. ctx has the stage's deadline.
	Complete(ctx context.Context) error

	// Start begins to work. The upgrade is committed; there is no way back.
	Start()
}

// Stage is parts that are frozen one behind the other and are complete together.
type Stage struct {
	Givers []Giver
	Within time.Duration // from the first Freeze to the last Complete
}
