// Package plot draws the benchmark's pictures: SVG of its own making, the same
// bytes for the same numbers, readable on light and on dark pages.
package plot

import (
	"bytes"
	"fmt"
	"math"
	"strings"
)

// Ratios is a picture of medians with their intervals, one line each, on a
// logarithmic axis around 1.
type Ratios struct {
	Title string
	Rows  []Ratio
}

// Ratio is one line.
type Ratio struct {
	Label             string
	Median, Low, High float64
	Bar               float64 // what must not be passed; 0: none
	Sign              Sign
}

// Sign is what a ratio says: its colour.
type Sign uint8

// The signs.
const (
	Neither Sign = iota
	Better
	Worse
)

func (s Sign) colour() string {
	return [...]string{Neither: "#7a7a7a", Better: "#2e8b57", Worse: "#c0392b"}[s]
}

const (
	width     = 860
	labelRoom = 330
	rightRoom = 120
	rowHeight = 22
	top       = 46
	bottom    = 34
)

// SVG draws it. Ratios that are not above 0 have no place on the axis and are
// left out.
func (p Ratios) SVG() []byte {
	var rows []Ratio
	for _, r := range p.Rows {
		if r.Median > 0 && r.Low > 0 && r.High > 0 && !math.IsInf(r.High, 0) {
			rows = append(rows, r)
		}
	}
	low, high := 0.5, 2.0
	for _, r := range rows {
		low, high = min(low, r.Low, or(r.Bar, low)), max(high, r.High, or(r.Bar, high))
	}
	x := logAxis(low, high, labelRoom, width-rightRoom)
	height := top + rowHeight*len(rows) + bottom
	c := newCanvas(width, height, p.Title)
	for _, tick := range logTicks(low, high) {
		c.line(x(tick), top-6, x(tick), float64(height-bottom), "#bbbbbb", 0.5)
		c.text(x(tick), float64(height-bottom+16), "middle", short(tick)+"×")
	}
	c.line(x(1), top-10, x(1), float64(height-bottom), "#7a7a7a", 1.5)
	for i, r := range rows {
		y := float64(top + rowHeight*i + rowHeight/2)
		c.text(labelRoom-12, y+4, "end", r.Label)
		if r.Bar > 0 {
			c.dashed(x(r.Bar), y-9, x(r.Bar), y+9)
		}
		c.line(x(r.Low), y, x(r.High), y, r.Sign.colour(), 2.5)
		c.dot(x(r.Median), y, r.Sign.colour())
		c.text(width-rightRoom+14, y+4, "start", short(r.Median)+"×")
	}
	return c.end()
}

// Lines is a picture of values over a number, both axes logarithmic.
type Lines struct {
	Title, X, Y string
	Series      []Series
}

// Series is one line of several points.
type Series struct {
	Label  string
	Points []Point
}

// Point is a median with its interval.
type Point struct{ X, Y, Low, High float64 }

// lineColours tell series apart, also to those who see no red and green.
var lineColours = [...]string{"#0072b2", "#d55e00", "#2e8b57", "#cc79a7", "#7a7a7a"}

// SVG draws it.
func (p Lines) SVG() []byte {
	const height, left, right, under = 340, 80, 240, 50
	lowX, highX, lowY, highY := math.Inf(1), 0.0, math.Inf(1), 0.0
	for _, s := range p.Series {
		for _, at := range s.Points {
			if at.X > 0 && at.Low > 0 {
				lowX, highX, lowY, highY = min(lowX, at.X), max(highX, at.X), min(lowY, at.Low), max(highY, at.High)
			}
		}
	}
	if highX == 0 {
		lowX, highX, lowY, highY = 1, 10, 1, 10
	}
	x, y := logAxis(lowX, highX, left, width-right), logAxis(lowY, highY, height-under, top)
	c := newCanvas(width, height, p.Title)
	for _, tick := range logTicks(lowY, highY) {
		c.line(left, y(tick), width-right, y(tick), "#bbbbbb", 0.5)
		c.text(left-8, y(tick)+4, "end", short(tick)+p.Y)
	}
	c.text(float64(left+width-right)/2, height-10, "middle", p.X)
	seen := map[float64]bool{}
	for i, s := range p.Series {
		colour := lineColours[i%len(lineColours)]
		last := -1
		for j, at := range s.Points {
			if at.X <= 0 || at.Low <= 0 {
				continue
			}
			if last >= 0 {
				c.line(x(s.Points[last].X), y(s.Points[last].Y), x(at.X), y(at.Y), colour, 2)
			}
			last = j
			c.line(x(at.X), y(at.Low), x(at.X), y(at.High), colour, 1)
			c.dot(x(at.X), y(at.Y), colour)
			if !seen[at.X] {
				seen[at.X] = true
				c.text(x(at.X), height-under+18, "middle", short(at.X))
			}
		}
		c.dot(width-right+20, float64(top+20*i), colour)
		c.text(width-right+30, float64(top+20*i)+4, "start", s.Label)
	}
	return c.end()
}

func or(a, b float64) float64 {
	if a > 0 {
		return a
	}
	return b
}

// logAxis maps low to from and high to to.
func logAxis(low, high, from, to float64) func(float64) float64 {
	if high <= low {
		low, high = low/2, low*2
	}
	return func(v float64) float64 { return from + (to-from)*math.Log(v/low)/math.Log(high/low) }
}

// logTicks are 1, 2 and 5 of each decade, or fewer of many decades.
func logTicks(low, high float64) []float64 {
	steps := []float64{1, 2, 5}
	if high/low > 1000 {
		steps = steps[:1]
	}
	var out []float64
	for e := int(math.Floor(math.Log10(low))); e <= int(math.Ceil(math.Log10(high))); e++ {
		for _, s := range steps {
			if v := s * math.Pow10(e); v >= low*0.999 && v <= high*1.001 {
				out = append(out, v)
			}
		}
	}
	return out
}

// short writes two or three significant digits.
func short(v float64) string {
	switch {
	case v >= 1000 && v == math.Trunc(v/1000)*1000:
		return fmt.Sprintf("%.0f,000", v/1000)
	case v >= 10:
		return fmt.Sprintf("%.0f", v)
	case v >= 1:
		return strings.TrimSuffix(strings.TrimSuffix(fmt.Sprintf("%.2f", v), "0"), ".0")
	}
	return strings.TrimRight(fmt.Sprintf("%.3f", v), "0")
}

// canvas collects the picture's parts.
type canvas struct{ b bytes.Buffer }

func newCanvas(w, h int, title string) *canvas {
	c := &canvas{}
	fmt.Fprintf(&c.b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" role="img">`+"\n", w, h, w, h)
	fmt.Fprintf(&c.b, "<title>%s</title>\n<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", escape(title), w, h)
	fmt.Fprintf(&c.b, "<text x=\"12\" y=\"20\" font-size=\"14\" font-weight=\"bold\" fill=\"#222222\">%s</text>\n", escape(title))
	return c
}

func (c *canvas) line(x1, y1, x2, y2 float64, colour string, wide float64) {
	fmt.Fprintf(&c.b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%.1f\"/>\n", x1, y1, x2, y2, colour, wide)
}

func (c *canvas) dashed(x1, y1, x2, y2 float64) {
	fmt.Fprintf(&c.b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#222222\" stroke-width=\"1.5\" stroke-dasharray=\"3 2\"/>\n", x1, y1, x2, y2)
}

func (c *canvas) dot(x, y float64, colour string) {
	fmt.Fprintf(&c.b, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", x, y, colour)
}

func (c *canvas) text(x, y float64, anchor, s string) {
	fmt.Fprintf(&c.b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"#222222\">%s</text>\n", x, y, anchor, escape(s))
}

func (c *canvas) end() []byte {
	c.b.WriteString("</svg>\n")
	return c.b.Bytes()
}

// escape is for text within XML.
func escape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace(s)
}
