package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	alerts     = "../lagan/files/alerts.yaml"
	alertTests = "alerts_test.yaml"
	dashboard  = "../lagan/files/dashboard.json"
)

// Where the driver says what it counts.
var counted = []string{"../../../src/telemetry.rs", "../../../src/app/cluster.rs"}

func content(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// promtool runs it; without it there is no test.
func promtool(t *testing.T, arguments ...string) {
	t.Helper()
	said, err := exec.Command("promtool", arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("promtool %v: %v (`.ci/prepare test` fetches it)\n%s", arguments, err, said)
	}
}

func rules(t *testing.T) prometheusRule {
	t.Helper()
	var found prometheusRule
	if err := yaml.UnmarshalStrict([]byte(content(t, alerts)), &found.Spec); err != nil {
		t.Fatal(err)
	}
	return found
}

// queries gives the panels of the dashboard: what each asks.
func queries(t *testing.T) map[string][]string {
	t.Helper()
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(content(t, dashboard)), &board); err != nil {
		t.Fatal(err)
	}
	asked := map[string][]string{}
	for _, panel := range board.Panels {
		if asked[panel.Title] != nil || len(panel.Targets) == 0 {
			t.Errorf("panel %q is there twice, or asks nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			asked[panel.Title] = append(asked[panel.Title], target.Expr)
		}
	}
	return asked
}

func TestEveryAlertSpeaksInItsTest(t *testing.T) {
	promtool(t, "check", "rules", alerts)
	promtool(t, "test", "rules", alertTests)
	tested := content(t, alertTests)
	groups := rules(t).Spec.Groups
	if len(groups) != 1 || len(groups[0].Rules) < 10 {
		t.Fatalf("%d groups", len(groups))
	}
	for _, rule := range groups[0].Rules {
		if !strings.Contains(tested, `alertname="`+rule.Alert+`", alertstate="firing"`) {
			t.Errorf("%s is not tested", rule.Alert)
		}
		severity := rule.Labels["severity"]
		if severity != "warning" && severity != "critical" || rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
			t.Errorf("%s says too little: %v", rule.Alert, rule)
		}
	}
}

func TestEveryQueryOfTheDashboardIsOne(t *testing.T) {
	variables := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*")
	var records []map[string]string
	for _, expressions := range queries(t) {
		for _, expression := range expressions {
			records = append(records, map[string]string{"record": "lagan:query", "expr": variables.Replace(expression)})
		}
	}
	if len(records) < 20 {
		t.Fatalf("only %d queries", len(records))
	}
	text, err := yaml.Marshal(map[string]any{"groups": []map[string]any{{"name": "dashboard", "rules": records}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "queries.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", "--lint=none", file)
}

// What is asked of Prometheus is counted by the driver, under that very name.
func TestEveryMetricIsThere(t *testing.T) {
	known := map[string]bool{}
	registered := regexp.MustCompile(`(?:register|gauge)\(\s*"([a-z_]+)"`)
	for _, path := range counted {
		for _, match := range registered.FindAllStringSubmatch(content(t, path), -1) {
			known["lagan_"+match[1]] = true
		}
	}
	if len(known) < 20 {
		t.Fatalf("only %d metrics are found in the source", len(known))
	}
	metric := regexp.MustCompile(`\blagan_[a-z_]+`)
	// OpenMetrics: of a counter, and of a histogram.
	suffix := regexp.MustCompile(`_(total|bucket|sum|count)$`)
	expect := func(place, text string) {
		for _, name := range metric.FindAllString(text, -1) {
			if !known[name] && !known[suffix.ReplaceAllString(name, "")] {
				t.Errorf("%s asks for %s, which nobody counts", place, name)
			}
		}
	}
	for _, rule := range rules(t).Spec.Groups[0].Rules {
		expect(rule.Alert, rule.Expr+rule.Annotations["description"])
	}
	for panel, expressions := range queries(t) {
		expect(panel, strings.Join(expressions, " "))
	}
	expect("the alerts' test", content(t, alertTests))
}
