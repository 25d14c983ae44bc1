package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sallyport/sallyport"
)

const (
	canaryWatch = 10 * time.Minute // without --watch

	canaryPoll = 500 * time.Millisecond

	// canaryAway is how long nobody may answer: the processes change.
	canaryAway = 20 * time.Second

	// canaryRefused is how long nobody may listen on the admin socket. It goes from
	// process to process open, so then all that had it have ended; a clean stop and
	// start in between takes its time.
	canaryRefused = 2 * time.Second
)

// serveCanary is what of POST /upgrade concerns canaries; done is false when
// nothing did.
func (n *node) serveCanary(r *http.Request, by string) (report *upgradeReport, done bool, err error) {
	q := r.URL.Query()
	switch {
	case q.Get("finish") != "" || q.Get("back") != "":
		report, err = n.order(canaryOrder{finish: q.Get("finish") != "", by: by})
		return report, true, err
	case q.Get("canary") == "":
		return nil, false, nil
	}
	share, serr := strconv.ParseFloat(q.Get("canary"), 64)
	watch, werr := time.ParseDuration(q.Get("watch"))
	if serr != nil || werr != nil || !(share > 0 && share <= canaryMost) || watch < canaryWatchMin || watch > canaryWatchMax {
		report = &upgradeReport{Time: time.Now(), By: by, Outcome: upgradeRefused}
		report, err = report.failed(&sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("a canary gets more than 0%% and at most %s of the connections, for %v to %v", percent(canaryMost), canaryWatchMin, canaryWatchMax)})
		return report, true, err
	}
	report, err = n.startCanary(canarySpec{share: share, watch: watch, force: q.Get("force") != "", by: by})
	return report, true, err
}

// canaryPath is what the command asks the process; "" when it is no canary's.
func (c *upgradeCmd) canaryPath() (string, error) {
	asked := 0
	for _, on := range []bool{c.Canary != nil, c.Finish, c.Back, c.CheckOnly} {
		if on {
			asked++
		}
	}
	switch {
	case asked > 1:
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "only one of --canary, --finish, --back and --check-only"}
	case c.Force && c.Canary == nil:
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "--force is for --canary", Hint: "sallyport upgrade asks nothing about traffic"}
	case c.Watch != nil && c.Canary == nil:
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: "--watch is for --canary: without one everything follows at once", Hint: fmt.Sprintf("sallyport upgrade --canary 5%% --watch %v", *c.Watch)}
	case c.Finish:
		return "/upgrade?finish=1", nil
	case c.Back:
		return "/upgrade?back=1", nil
	case c.Canary == nil:
		return "", nil
	}
	share, err := parseShare(*c.Canary)
	if err != nil {
		return "", err
	}
	watch := canaryWatch
	if c.Watch != nil {
		watch = *c.Watch
	}
	if watch < canaryWatchMin || watch > canaryWatchMax {
		return "", &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--watch=%v: a canary is watched for %v to %v", watch, canaryWatchMin, canaryWatchMax),
			Hint: fmt.Sprintf("without --watch it is %v", canaryWatch)}
	}
	path := fmt.Sprintf("/upgrade?canary=%s&watch=%v", strconv.FormatFloat(share, 'f', -1, 64), watch)
	if c.Force {
		path += "&force=1"
	}
	return path, nil
}

// parseShare reads "5%". A number alone might be meant as a part of 1 or of 100.
func parseShare(text string) (float64, error) {
	const hint = "sallyport upgrade --canary 5%"
	number, isPercent := strings.CutSuffix(text, "%")
	share, err := strconv.ParseFloat(number, 64)
	if err == nil && !isPercent {
		return 0, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--canary=%s: a share is written with a percent sign", text), Hint: hint}
	}
	share /= 100
	if err != nil || !(share > 0 && share <= canaryMost) {
		return 0, &sallyport.Problem{Kind: sallyport.ErrInvalid, Fact: fmt.Sprintf("--canary=%s: a share is more than 0%% and at most %s", text, percent(canaryMost)), Hint: hint}
	}
	return share, nil
}

// follow waits for what comes of a canary, whichever process answers by then.
func (c *upgradeCmd) follow(p *program, dir string, begun *canaryStatus) (*upgradeReport, error) {
	if c.Format == "text" && c.Canary != nil {
		fmt.Fprintf(p.stdout, "Process %d of version %s gets %s of new connections until %s. Ctrl-C leaves it running; --finish and --back end it.\n",
			begun.PID, begun.Version, percent(begun.Share), begun.Until.Local().Format(time.TimeOnly))
	}
	var refused time.Time // since when nobody listens
	for seen := time.Now(); ; {
		var s nodeStatus
		err := askAdmin(p.ctx, dir, question{method: http.MethodGet, path: "/status", within: statusTimeout}, &s)
		if r := s.recordOf(begun); r != nil {
			return r, nil
		}
		if s.Canary != nil && s.Canary.PID == begun.PID {
			seen = time.Now()
		}
		away := canaryAway
		if err == nil {
			away = upgradeAnswer // the upgrade runs
		}
		switch gone := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist); {
		case !gone:
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case time.Since(refused) > canaryRefused:
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "the process that had the canary has ended, and nobody listens",
				Hint: "sallyport start; its log may say why. The canary serves the connections that it has"}
		}
		if time.Since(seen) > away {
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: err, Fact: "nobody says what came of the canary", Hint: "sallyport status, and the log"}
		}
		select {
		case <-time.After(canaryPoll):
		case <-p.ctx.Done():
			return nil, &sallyport.Problem{Kind: sallyport.ErrUnavailable, Cause: context.Cause(p.ctx), Fact: "the canary goes on without this command", Hint: "sallyport status shows it; sallyport upgrade --finish or --back ends it"}
		}
	}
}

// recordOf finds what came of a canary.
func (s *nodeStatus) recordOf(begun *canaryStatus) *upgradeReport {
	for i := range s.Upgrades {
		if c := s.Upgrades[i].Canary; c != nil && c.PID == begun.PID && c.Started.Equal(begun.Started) {
			return &s.Upgrades[i]
		}
	}
	return nil
}

// canaryRun is the command with a canary.
func (c *upgradeCmd) canaryRun(p *program, dir, path string) (*upgradeReport, error) {
	var begun upgradeReport
	if err := askAdmin(p.ctx, dir, question{method: http.MethodPost, path: path, within: upgradeAnswer}, &begun); err != nil {
		return nil, err
	}
	if begun.Problem != "" {
		return &begun, nil
	}
	if begun.Canary == nil {
		return nil, errors.New("the sallyport that runs knows no canary")
	}
	r, err := c.follow(p, dir, begun.Canary)
	if err == nil && c.Back && r.Outcome == upgradeBack {
		r.Problem, r.Hint = "", "" // it was asked for
	}
	return r, err
}
