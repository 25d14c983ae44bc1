package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sallyport/sallyport/tools/peers"
)

// chromium is a real browser, told what to do by its DevTools protocol over two
// pipes. Pages run with scripts switched off.
type chromium struct {
	t       testing.TB
	cmd     *exec.Cmd
	session string // of the one page
	ended   chan struct{}

	mu      sync.Mutex
	to      *os.File
	next    int
	waiting map[int]chan answer
	faults  []string // what pages did against their own policy
}

// answer is one message of the browser.
type answer struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
	Params json.RawMessage `json:"params"`
}

func startChromium(t testing.TB, flags ...string) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		peers.Missing(t, "chromium")
	}
	theirs, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	home := shortDir(t)
	c := &chromium{t: t, to: to, ended: make(chan struct{}), waiting: map[int]chan answer{}}
	// The cluster's certificate is of its own CA; what is tested is not TLS.
	args := append([]string{"--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--ignore-certificate-errors", "--user-data-dir=" + home}, flags...)
	c.cmd = exec.Command(path, append(args, "about:blank")...)
	c.cmd.Env = append(os.Environ(), "HOME="+home)
	c.cmd.ExtraFiles = []*os.File{theirs, answers} // descriptors 3 and 4
	said := &tail{}
	c.cmd.Stderr = said
	err = c.cmd.Start()
	theirs.Close()
	answers.Close()
	if err != nil {
		t.Fatal(err)
	}
	go c.read(from)
	t.Cleanup(func() {
		c.tell("Browser.close", nil)
		select {
		case <-c.ended:
		case <-time.After(stopWait):
		}
		c.cmd.Process.Kill() // it has ended, or does now
		c.cmd.Wait()
		<-c.ended
		to.Close()
		if t.Failed() {
			t.Logf("chromium said:\n%s", lastLines(said.String(), 20))
		}
	})
	var target struct{ TargetID, SessionID string }
	c.must(c.ask("Target.createTarget", map[string]any{"url": "about:blank"}, &target))
	c.must(c.ask("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target))
	c.session = target.SessionID
	for _, method := range []string{"Page.enable", "Network.enable", "Log.enable"} {
		c.must(c.ask(method, nil, nil))
	}
	c.scripts(false)
	return c
}

// scripts says whether pages may run them, from the next page on.
func (c *chromium) scripts(run bool) {
	c.t.Helper()
	c.must(c.ask("Emulation.setScriptExecutionDisabled", map[string]any{"value": !run}, nil))
}

// read hands answers to who waits, until the browser is gone.
func (c *chromium) read(from *os.File) {
	defer close(c.ended)
	defer from.Close()
	r := bufio.NewReader(from)
	for {
		b, err := r.ReadBytes(0)
		if err != nil {
			return
		}
		var a answer
		if json.Unmarshal(b[:len(b)-1], &a) != nil {
			continue
		}
		c.mu.Lock()
		if to := c.waiting[a.ID]; to != nil {
			to <- a
			delete(c.waiting, a.ID)
		}
		if a.Method == "Log.entryAdded" && strings.Contains(string(a.Params), "Content Security Policy") {
			c.faults = append(c.faults, string(a.Params))
		}
		c.mu.Unlock()
	}
}

func (c *chromium) tell(method string, params any) chan answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	got := make(chan answer, 1)
	c.waiting[c.next] = got
	m := map[string]any{"id": c.next, "method": method}
	if params != nil {
		m["params"] = params
	}
	if c.session != "" && !strings.HasPrefix(method, "Browser.") {
		m["sessionId"] = c.session
	}
	b, err := json.Marshal(m)
	if err == nil {
		_, err = c.to.Write(append(b, 0))
	}
	if err != nil {
		got <- answer{Error: &struct {
			Message string `json:"message"`
		}{err.Error()}}
	}
	return got
}

func (c *chromium) ask(method string, params, into any) error {
	select {
	case a := <-c.tell(method, params):
		if a.Error != nil {
			return fmt.Errorf("%s: %s", method, a.Error.Message)
		}
		if into == nil {
			return nil
		}
		return json.Unmarshal(a.Result, into)
	case <-c.ended:
		return errors.New("chromium has ended")
	case <-time.After(runWait):
		return fmt.Errorf("%s: no answer", method)
	}
}

func (c *chromium) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// eval is what an expression says on the page. While the page changes it says nothing.
func (c *chromium) eval(expression string) string {
	var r struct {
		Result struct {
			Value any `json:"value"`
		} `json:"result"`
	}
	if c.ask("Runtime.evaluate", map[string]any{"expression": "String(" + expression + ")", "returnByValue": true}, &r) != nil {
		return ""
	}
	s, _ := r.Result.Value.(string)
	return s
}

func (c *chromium) open(url string) {
	c.t.Helper()
	c.must(c.ask("Page.navigate", map[string]any{"url": url}, nil))
}

// see waits until there is an element.
func (c *chromium) see(selector string) {
	c.t.Helper()
	c.until(fmt.Sprintf("document.readyState == 'complete' && document.querySelector(%q) !== null", selector))
}

// says waits until the page has a text.
func (c *chromium) says(text string) {
	c.t.Helper()
	c.until(fmt.Sprintf("document.readyState == 'complete' && document.body.innerText.includes(%q)", text))
}

func (c *chromium) until(condition string) {
	c.t.Helper()
	deadline := time.Now().Add(runWait)
	for c.eval(condition) != "true" {
		if time.Now().After(deadline) {
			c.t.Fatalf("the page is not as it should be: %s\n%s\n%s", condition, c.eval("location.href"), c.eval("document.documentElement.outerHTML"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *chromium) fill(name, value string) {
	c.t.Helper()
	selector := fmt.Sprintf("[name=%s]", name)
	c.see(selector)
	c.eval(fmt.Sprintf("document.querySelector(%q).value = %q", selector, value))
}

func (c *chromium) click(selector string) {
	c.t.Helper()
	c.see(selector)
	c.eval(fmt.Sprintf("document.querySelector(%q).click()", selector))
}

// cookie is one that the browser holds.
type cookie struct {
	Name     string `json:"name"`
	Value    string `json:"value"`
	Domain   string `json:"domain"`
	Path     string `json:"path"`
	HTTPOnly bool   `json:"httpOnly"`
	Secure   bool   `json:"secure"`
	SameSite string `json:"sameSite"`
}

// cookies are those that a request to the address would carry.
func (c *chromium) cookies(url string) []cookie {
	c.t.Helper()
	var r struct{ Cookies []cookie }
	c.must(c.ask("Network.getCookies", map[string]any{"urls": []string{url}}, &r))
	return r.Cookies
}
