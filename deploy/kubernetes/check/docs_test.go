package main

import (
	"regexp"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/strvals"
)

const page = "../../../docs/kubernetes.md"

// What the page shows can be used: objects are read as the API server would, values are taken by the chart.
func TestWhatThePageShowsIsAccepted(t *testing.T) {
	text := content(t, page)
	objects, values := 0, 0
	for _, match := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(text, -1) {
		for _, part := range strings.Split(match[1], "\n---\n") {
			if !strings.Contains(part, "apiVersion:") {
				values++
				if _, err := render(valuesOf(t, part)); err != nil {
					t.Errorf("%v in\n%s", err, part)
				}
				continue
			}
			objects++
			if _, err := decode(part); err != nil {
				t.Errorf("%v in\n%s", err, part)
			}
		}
	}
	set := regexp.MustCompile(`--set '?([^' \n]+)'?`)
	for _, match := range set.FindAllStringSubmatch(strings.ReplaceAll(text, "`", "\n"), -1) {
		values++
		given, err := strvals.Parse(match[1])
		if err == nil {
			_, err = render(given)
		}
		if err != nil {
			t.Errorf("--set %s: %v", match[1], err)
		}
	}
	if objects < 5 || values < 6 {
		t.Errorf("only %d objects and %d values are shown", objects, values)
	}
}

// Whatever can be set is spoken of where it matters: a value that the page names is one.
func TestThePageNamesValuesThatAreThere(t *testing.T) {
	rows := strings.Split(strings.Split(content(t, page), "## Values that matter")[1], "\n## ")[0]
	values, err := readValues(chartDirectory + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, row := range strings.Split(rows, "\n") {
		cell, is := strings.CutPrefix(row, "| `")
		if !is {
			continue
		}
		for _, name := range strings.Split(strings.SplitN(cell, " |", 2)[0], ", ") {
			found++
			var at any = values
			for _, key := range strings.Split(strings.Trim(name, "`"), ".") {
				level, _ := at.(map[string]any)
				if at, is = level[key]; !is {
					t.Errorf("there is no value %s", name)
				}
			}
		}
	}
	if found < 8 {
		t.Errorf("only %d values are found", found)
	}
}
