{{/* Names, labels, images, configuration: what the other templates share. */}}

{{- define "lagan.labels" -}}
app.kubernetes.io/name: lagan
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* What selects the pods of one part: (list . "router"). These may never change. */}}
{{- define "lagan.selector" -}}
app.kubernetes.io/name: lagan
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* A reference to an image: (dict "registry" … "repository" … "tag" … "digest" …). */}}
{{- define "lagan.imageReference" -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{- define "lagan.image" -}}
{{- $image := .Values.image -}}
{{- include "lagan.imageReference" (dict "registry" $image.registry "repository" $image.repository "tag" ($image.tag | default .Chart.AppVersion) "digest" $image.digest) -}}
{{- end }}

{{- define "lagan.routerSecret" -}}
{{ .Values.certificates.routerSecret | default (printf "%s-router-certificate" .Release.Name) }}
{{- end }}

{{- define "lagan.hostSecret" -}}
{{ .Values.certificates.hostSecret | default (printf "%s-host-certificates" .Release.Name) }}
{{- end }}

{{/* Names of the hosts, as a JSON list: those of the values, else the nodes that are there and that host.nodeSelector takes. */}}
{{- define "lagan.hostNames" -}}
{{- $names := list -}}
{{- range .Values.hosts }}{{ $names = append $names .name }}{{ end -}}
{{- if not $names -}}
  {{- $selector := .Values.host.nodeSelector -}}
  {{- range (lookup "v1" "Node" "" "").items -}}
    {{- $labels := .metadata.labels | default dict -}}
    {{- $taken := true -}}
    {{- range $key, $value := $selector -}}
      {{- if ne (toString (get $labels $key)) (toString $value) }}{{ $taken = false }}{{ end -}}
    {{- end -}}
    {{- if $taken }}{{ $names = append $names .metadata.name }}{{ end -}}
  {{- end -}}
{{- end -}}
{{ $names | sortAlpha | toJson }}
{{- end }}

{{/* One value of TOML. Helm reads every number as one with a fraction. */}}
{{- define "lagan.toml" -}}
{{- if kindIs "float64" . }}{{ int64 . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end }}

{{/* What both configurations begin with. */}}
{{- define "lagan.commonConfig" -}}
driver_name = {{ .Values.driverName | quote }}
http = "{{ .Values.listenAddress }}:9736"
{{- with .Values.forgottenPools }}
forgotten_pools = {{ toJson . }}
{{- end }}
{{- range $key, $value := .Values.config }}
{{ $key }} = {{ include "lagan.toml" $value }}
{{- end }}
{{- end }}

{{- define "lagan.socket" -}}
{{ .Values.host.kubeletDir }}/plugins/{{ .Values.driverName }}/csi.sock
{{- end }}

{{- define "lagan.hostConfig" -}}
{{ include "lagan.commonConfig" . }}
endpoint = "unix://{{ include "lagan.socket" . }}"
kubelet_registry = "{{ .Values.host.kubeletDir }}/plugins_registry"
target_roots = [{{ .Values.host.kubeletDir | quote }}]
state_dir = {{ .Values.host.stateDir | quote }}

[cluster]
certificates = "/etc/lagan/certs"
listen = "{{ .Values.listenAddress }}:9735"
{{- range .Values.pools }}

[[pool]]
{{- range $key, $value := . }}
{{ $key }} = {{ include "lagan.toml" $value }}
{{- end }}
{{- end }}
{{- end }}

{{- define "lagan.routerConfig" -}}
{{ include "lagan.commonConfig" . }}
endpoint = "unix:///run/lagan/csi.sock"

[cluster]
certificates = "/etc/lagan/certs"
dns = "{{ .Release.Name }}-hosts.{{ .Release.Namespace }}.svc:9735"
# The provisioner names the pod's node first and all others after it, since a copy can only be made where its source is.
first_only = true
{{- with .Values.router.defaultHost }}
default_host = {{ . | quote }}
{{- end }}
{{- with .Values.forgottenHosts }}
forgotten_hosts = {{ toJson . }}
{{- end }}
{{- with .Values.hosts }}

[cluster.hosts]
{{- range . }}
{{ .name | quote }} = {{ .address | default "" | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Directories of file pools that do not lie in the state directory. */}}
{{- define "lagan.poolPaths" -}}
{{- $paths := list -}}
{{- $state := printf "%s/" .Values.host.stateDir -}}
{{- range .Values.pools -}}
  {{- if and .path (not (hasPrefix $state .path)) }}{{ $paths = append $paths .path }}{{ end -}}
{{- end -}}
{{ $paths | uniq | toJson }}
{{- end }}

{{- define "lagan.usesLvm" -}}
{{- range .Values.pools }}{{ if eq .kind "lvm" }}yes{{ end }}{{ end -}}
{{- end }}
