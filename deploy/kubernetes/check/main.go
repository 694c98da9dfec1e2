// Renders the chart the way that `helm template` does, for those without Helm: `make manifest` writes lagan.yaml with it. The
// tests beside it hold chart, manifest, schema, alerts and dashboard to what they promise.
package main

import (
	"fmt"
	"os"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	"sigs.k8s.io/yaml"
)

const (
	chartDirectory = "../lagan"
	manifest       = "../lagan.yaml"
	manifestValues = "../lagan-values.yaml"
	// Name and namespace of the release that the manifest is.
	name = "lagan"
)

// What stands before the chart's own objects. Privileged pods need a namespace that takes them.
const head = `# Made from the chart by ` + "`make manifest`" + `, with lagan-values.yaml: change those, not this file. docs/kubernetes.md says how it is used.
---
apiVersion: v1
kind: Namespace
metadata:
  name: lagan
  labels:
    pod-security.kubernetes.io/enforce: privileged
`

func main() {
	text, err := renderManifest()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Print(text)
}

func renderManifest() (string, error) {
	values, err := readValues(manifestValues)
	if err != nil {
		return "", err
	}
	objects, err := render(values)
	if err != nil {
		return "", err
	}
	return head + strings.Join(objects, ""), nil
}

func readValues(path string) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	return values, yaml.UnmarshalStrict(text, &values)
}

func load() (*chart.Chart, error) {
	loaded, err := loader.Load(chartDirectory)
	if err != nil {
		return nil, err
	}
	return loaded, nil
}

// An engine makes files of a chart and its values: with a cluster to look into, or without.
type maker func(*chart.Chart, common.Values) (map[string]string, error)

// render gives every object of the chart, in the order in which Helm makes them. The schema has its say.
func render(values map[string]any) ([]string, error) {
	return renderBy(values, func(loaded *chart.Chart, all common.Values) (map[string]string, error) {
		return engine.Render(loaded, all)
	})
}

func renderBy(values map[string]any, make maker) ([]string, error) {
	loaded, err := load()
	if err != nil {
		return nil, err
	}
	options := common.ReleaseOptions{Name: name, Namespace: name, Revision: 1, IsInstall: true}
	all, err := util.ToRenderValues(loaded, values, options, common.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := make(loaded, all)
	if err != nil {
		return nil, err
	}
	for path := range files {
		if !strings.HasSuffix(path, ".yaml") {
			delete(files, path)
		}
	}
	_, sorted, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	var objects []string
	for _, object := range sorted {
		objects = append(objects, fmt.Sprintf("---\n# Source: %s\n%s\n", object.Name, strings.TrimSpace(object.Content)))
	}
	return objects, nil
}
