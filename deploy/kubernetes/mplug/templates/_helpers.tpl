{{- define "mplug.name" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- end }}

{{- define "mplug.selector" -}}
app.kubernetes.io/name: mplug
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "mplug.serverSelector" -}}
{{ include "mplug.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "mplug.gatewaySelector" -}}
{{ include "mplug.selector" . }}
app.kubernetes.io/component: gateway
{{- end }}

{{- define "mplug.labels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "mplug.confined" -}}
{ allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: [ALL] } }
{{- end }}

{{/* The servers' pods in Prometheus: the operator names a PodMonitor's job so. */}}
{{- define "mplug.job" -}}job="{{ .Release.Namespace }}/{{ include "mplug.name" . }}"{{- end }}
