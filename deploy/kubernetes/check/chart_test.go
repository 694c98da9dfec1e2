package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"sigs.k8s.io/yaml"
)

// Values that a chart is rendered with: together they take every branch of its templates.
var variants = map[string]string{
	"defaults": `{}`,
	"manifest": `{certificates: {mode: secrets}}`,
	"two hosts": `
hosts: [{name: n1}, {name: n2.example.org, address: "10.0.0.2:9735"}]
image: {registry: registry.example.org/storage, tag: "1.2"}
config: {max_operations: 512, allow_suid: true}
forgottenHosts: [n3]
listenAddress: "[::]"
forgottenPools: [0123456789abcdef0123456789abcdef]
router: {defaultHost: n1, replicas: 3, tolerations: [{operator: Exists}], nodeSelector: {a: b}, podLabels: {c: d}, podAnnotations: {e: f}, extraArgs: [--output=json]}
host: {hostNetwork: true, nodeSelector: {storage: "yes"}, podLabels: {c: d}, podAnnotations: {e: f}, extraArgs: [--output=json], affinity: {nodeAffinity: {}}}
imagePullSecrets: [{name: pull}]
`,
	"pools": `
hosts: [{name: n1}]
pools:
  - {name: big, kind: file, path: /srv/lagan, overcommit_percent: 200, freeze_limit: 2s}
  - {name: inner, kind: file, path: /var/lib/lagan/inner}
  - {name: fast, kind: lvm, vg: vg0, thin_pool: pool, extend_at_percent: 80}
  - {name: disk, kind: block, device: /dev/disk/by-partlabel/lagan}
storageClasses: [{name: lagan-fast, default: true, parameters: {pool: fast}, mountOptions: [noatime], reclaimPolicy: Retain, volumeBindingMode: Immediate,
  allowedTopologies: [{matchLabelExpressions: [{key: lagan.csi/host, values: [n1]}]}], annotations: {a: b}}]
`,
	"cert-manager": `
hosts: [{name: n1}, {name: n2}]
certificates: {mode: certManager, issuerRef: {name: storage, kind: ClusterIssuer}}
`,
	"watched": `
certificates: {mode: secrets, routerSecret: mine, hostSecret: theirs}
networkPolicy: {metricsFrom: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}}]}
monitoring:
  serviceMonitor: {enabled: true, labels: {release: prometheus}}
  rules: {enabled: true, labels: {release: prometheus}}
  dashboard: {enabled: true}
snapshots: {classes: [{name: keep, deletionPolicy: Retain, default: true}]}
`,
	"little": `
image: {digest: "sha256:0123456789012345678901234567890123456789012345678901234567890123"}
snapshots: {enabled: false}
networkPolicy: {enabled: false}
podDisruptionBudget: {enabled: false}
storageClasses: []
driverName: storage.example.org
host: {kubeletDir: /var/lib/k0s/kubelet, stateDir: /srv/state}
`,
}

// What the schema must refuse, and the place that it must name.
var refused = map[string]string{
	`{surprise: 1}`:                                             "surprise",
	`{driverName: Lagan}`:                                       "/driverName",
	`{image: {digest: latest}}`:                                 "/image/digest",
	`{image: {tag: "a b"}}`:                                     "/image/tag",
	`{hosts: [n1]}`:                                             "/hosts/0",
	`{hosts: [{name: N1}]}`:                                     "/hosts/0/name",
	`{hosts: [{name: n1}, {name: n1}]}`:                         "/hosts",
	`{pools: [{name: a, kind: tape}]}`:                          "/pools/0/kind",
	`{pools: [{name: a, kind: lvm, vg: v}]}`:                    "thin_pool",
	`{pools: [{name: a, kind: file, path: srv}]}`:               "/pools/0/path",
	`{pools: [{name: a, kind: block, device: /d, size: 1}]}`:    "size",
	`{config: {endpoint: /x}}`:                                  "endpoint",
	`{config: {max_operations: 0}}`:                             "/config/max_operations",
	`{forgottenPools: [x]}`:                                     "/forgottenPools/0",
	`{listenAddress: "::"}`:                                     "/listenAddress",
	`{logLevel: loud}`:                                          "/logLevel",
	`{certificates: {mode: none}}`:                              "/certificates/mode",
	`{certificates: {mode: certManager}}`:                       "/certificates/issuerRef",
	`{host: {hostnetwork: true}}`:                               "hostnetwork",
	`{host: {kubeletDir: kubelet}}`:                             "/host/kubeletDir",
	`{router: {replicas: 0}}`:                                   "/router/replicas",
	`{sidecars: {provisioner: {tag: ""}, workers: 0}}`:          "/sidecars/workers",
	`{sidecars: {attacher: {timeout: 1}}}`:                      "/sidecars/attacher/timeout",
	`{capacityPollInterval: often}`:                             "/capacityPollInterval",
	`{snapshots: {classes: [{name: a, deletionPolicy: Keep}]}}`: "/snapshots/classes/0/deletionPolicy",
	`{storageClasses: [{name: a, parameters: {poool: b}}]}`:     "poool",
	`{storageClasses: [{name: a, parameters: {fstype: ntfs}}]}`: "/storageClasses/0/parameters/fstype",
	`{networkPolicy: {metricsFrom: all}}`:                       "/networkPolicy/metricsFrom",
	`{monitoring: {rules: {enabled: "yes"}}}`:                   "/monitoring/rules/enabled",
}

func valuesOf(t *testing.T, text string) map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(text), &values); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return values
}

func TestManifestIsThatOfTheChart(t *testing.T) {
	made, err := renderManifest()
	if err != nil {
		t.Fatal(err)
	}
	there, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if made != string(there) {
		t.Fatalf("%s is not what the chart gives: make manifest", manifest)
	}
}

func TestChartLints(t *testing.T) {
	for variant, text := range variants {
		for _, message := range lint.RunAll(chartDirectory, valuesOf(t, text), name).Messages {
			if message.Severity > support.InfoSev {
				t.Errorf("%s: %s", variant, message)
			}
		}
	}
}

func TestSchemaRefusesWhatIsWrong(t *testing.T) {
	for text, place := range refused {
		_, err := render(valuesOf(t, text))
		if err == nil {
			t.Errorf("%s is taken", text)
		} else if !strings.Contains(err.Error(), place) {
			t.Errorf("%s is refused without a word of %s: %v", text, place, err)
		}
	}
}

// What the schema knows has a default in values.yaml, where people look for it; and nothing that is there is without a rule.
func TestValuesAndSchemaNameTheSame(t *testing.T) {
	values, err := readValues(filepath.Join(chartDirectory, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(chartDirectory, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	schema := valuesOf(t, string(text))
	definitions := schema["$defs"].(map[string]any)
	var compare func(place string, schema map[string]any, values map[string]any)
	compare = func(place string, schema map[string]any, values map[string]any) {
		if reference, is := schema["$ref"].(string); is {
			schema = definitions[filepath.Base(reference)].(map[string]any)
		}
		properties, closed := schema["properties"].(map[string]any)
		if !closed {
			return
		}
		for key, inner := range properties {
			value, there := values[key]
			if !there && place+key != "global" {
				t.Errorf("%s%s has no default in values.yaml", place, key)
			}
			if nested, is := value.(map[string]any); is && place+key != "config" {
				compare(place+key+".", inner.(map[string]any), nested)
			}
		}
		if !reflect.DeepEqual(schema["additionalProperties"], false) {
			t.Errorf("%s takes any key", place)
		}
	}
	compare("", schema, values)
}
