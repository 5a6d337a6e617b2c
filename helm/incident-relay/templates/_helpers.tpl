{{/* Names, labels, and what the relay's pod and that of `helm test` share. What is refused stands in refused.yaml. */}}

{{/* Where things are in the container. */}}
{{- define "incident-relay.folder" -}}/var/lib/relay{{- end }}
{{- define "incident-relay.secretsFolder" -}}/run/secrets/relay{{- end }}
{{- define "incident-relay.caFolder" -}}/etc/relay-ca{{- end }}

{{- define "incident-relay.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{/* At most 52 characters: a StatefulSet's pods get a label that is 11 longer. A longer one ends in its hash, so that two stay apart. */}}
{{- define "incident-relay.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $chart := .Values.nameOverride | default .Chart.Name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name $chart) (or (contains $chart .Release.Name) (hasSuffix (printf "-%s" .Release.Name) $chart)) -}}
{{- end -}}
{{- if gt (len $name) 52 -}}
{{- $name = printf "%s-%s" ($name | trunc 43 | trimSuffix "-") ($name | sha256sum | trunc 8) -}}
{{- end -}}
{{- $name | trimSuffix "-" -}}
{{- end }}

{{- define "incident-relay.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "incident-relay.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{/* These never change, for selectors can't: nothing of a version, nothing of a value but the names. */}}
{{- define "incident-relay.releaseLabels" -}}
app.kubernetes.io/name: {{ include "incident-relay.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "incident-relay.selectorLabels" -}}
{{ include "incident-relay.releaseLabels" . }}
app.kubernetes.io/component: relay
{{- end }}

{{- define "incident-relay.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | trunc 63 | trimSuffix "-" }}
{{ include "incident-relay.releaseLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "incident-relay.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "incident-relay.configuration" -}}
{{ toYaml .Values.configuration }}
{{- end }}

{{/* Whether the journal is on Kafka, `true` or nothing. */}}
{{- define "incident-relay.onKafka" -}}
{{- if eq (dig "journal" "kind" "sqlite" .Values.configuration | toString) "kafka" -}}true{{- end -}}
{{- end }}

{{- define "incident-relay.workload" -}}
{{- ternary "Deployment" "StatefulSet" (not (empty (include "incident-relay.onKafka" .))) -}}
{{- end }}

{{- define "incident-relay.replicas" -}}
{{- if kindIs "invalid" .Values.replicas -}}
{{- ternary 2 1 (not (empty (include "incident-relay.onKafka" .))) -}}
{{- else -}}
{{- int .Values.replicas -}}
{{- end -}}
{{- end }}

{{/* The volume in which the relay writes: its journal, or the cache of a journal that is on Kafka. */}}
{{- define "incident-relay.ownVolume" -}}
{{- ternary "cache" "journal" (not (empty (include "incident-relay.onKafka" .))) -}}
{{- end }}

{{- define "incident-relay.httpPort" -}}
{{- dig "http" "port" 8080 .Values.configuration | int -}}
{{- end }}

{{/* shutdown_grace, then 3 s in which sinks let go, and 2 s to spare; whole seconds, rounded up. */}}
{{- define "incident-relay.graceSeconds" -}}
{{- $pattern := "^(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?$" -}}
{{- $grace := dig "shutdown_grace" "25s" .Values.configuration | toString -}}
{{- if or (not $grace) (not (regexMatch $pattern $grace)) -}}
{{- fail (printf "configuration.shutdown_grace is not a duration; write 25s or 1m30s") -}}
{{- end -}}
{{- $parts := splitList " " (regexReplaceAll $pattern $grace "0${1} 0${2} 0${3} 0${4} 0${5}") -}}
{{- $seconds := add (mul 86400 (atoi (index $parts 0))) (mul 3600 (atoi (index $parts 1))) (mul 60 (atoi (index $parts 2))) (atoi (index $parts 3)) -}}
{{- add $seconds (div (add 999 (atoi (index $parts 4))) 1000) 5 -}}
{{- end }}

{{/* Ports of the brokers that the configuration names, as JSON. */}}
{{- define "incident-relay.kafkaPorts" -}}
{{- $blocks := list (.Values.configuration.kafka | default dict) -}}
{{- range $label, $sink := .Values.configuration.sinks -}}
{{- $blocks = append $blocks ($sink.kafka | default dict) -}}
{{- end -}}
{{- $ports := list -}}
{{- range $blocks -}}
{{- range (get . "bootstrap.servers" | toString | splitList ",") -}}
{{- if trim . -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "9092" | atoi) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end }}

{{/* Ports of the proxies, as JSON. */}}
{{- define "incident-relay.proxyPorts" -}}
{{- $ports := list -}}
{{- range (list .Values.proxy.https .Values.proxy.http) -}}
{{- if . -}}
{{- $usual := ternary "443" "80" (hasPrefix "https://" .) -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trimSuffix "/" .) | trimPrefix ":" | default $usual | atoi) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end }}

{{/* Whether any Secret is mounted, `true` or nothing. */}}
{{- define "incident-relay.hasSecrets" -}}
{{- if or .Values.existingSecret .Values.secrets .Values.externalSecret.enabled -}}true{{- end -}}
{{- end }}

{{- define "incident-relay.env" -}}
- name: RELAY_CONFIG
  value: /etc/relay/relay.yaml
{{- if include "incident-relay.onKafka" . }}
{{- if not (dig "journal" "cache_dir" "" .Values.configuration) }}
# Relative paths start at the folder of the configuration, which can't be written.
- name: RELAY_JOURNAL__CACHE_DIR
  value: {{ include "incident-relay.folder" . }}/cache
{{- end }}
{{- else if not (dig "journal" "path" "" .Values.configuration) }}
# Relative paths start at the folder of the configuration, which can't be written.
- name: RELAY_JOURNAL__PATH
  value: {{ include "incident-relay.folder" . }}/relay.db
{{- end }}
{{- if not (dig "kafka_prefix" "" .Values.configuration) }}
# Tells this release from others that write to the same Kafka.
- name: RELAY_KAFKA_PREFIX
  value: {{ printf "%s-%s" .Release.Namespace (include "incident-relay.fullname" .) }}
{{- end }}
{{- if or .Values.caBundle.configMapName .Values.caBundle.secretName }}
- name: SSL_CERT_FILE
  value: {{ include "incident-relay.caFolder" . }}/ca.pem
{{- end }}
{{- with .Values.proxy.https }}
- name: HTTPS_PROXY
  value: {{ . | quote }}
{{- end }}
{{- with .Values.proxy.http }}
- name: HTTP_PROXY
  value: {{ . | quote }}
{{- end }}
{{- if and (or .Values.proxy.https .Values.proxy.http) .Values.proxy.noProxy }}
- name: NO_PROXY
  value: {{ .Values.proxy.noProxy | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "incident-relay.volumeMounts" -}}
- name: configuration
  mountPath: /etc/relay
  readOnly: true
{{- if include "incident-relay.hasSecrets" . }}
- name: secrets
  mountPath: {{ include "incident-relay.secretsFolder" . }}
  readOnly: true
{{- end }}
{{- if or .Values.caBundle.configMapName .Values.caBundle.secretName }}
- name: ca
  mountPath: {{ include "incident-relay.caFolder" . }}
  readOnly: true
{{- end }}
- name: {{ include "incident-relay.ownVolume" . }}
  mountPath: {{ include "incident-relay.folder" . }}
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* All but its own, and those of the user. */}}
{{- define "incident-relay.volumes" -}}
- name: configuration
  configMap:
    name: {{ include "incident-relay.fullname" . }}
{{- if include "incident-relay.hasSecrets" . }}
- name: secrets
  projected:
    # No mount of single files: those would never see a rotated Secret.
    defaultMode: 0440
    sources:
      {{- with .Values.existingSecret }}
      - secret:
          name: {{ . }}
      {{- end }}
      {{- if .Values.externalSecret.enabled }}
      - secret:
          name: {{ include "incident-relay.fullname" . }}
      {{- end }}
      {{- range .Values.secrets }}
      - secret:
          name: {{ .secretName }}
          {{- with .items }}
          items:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with .optional }}
          optional: {{ . }}
          {{- end }}
      {{- end }}
{{- end }}
{{- if or .Values.caBundle.configMapName .Values.caBundle.secretName }}
- name: ca
  projected:
    sources:
      - {{ ternary "configMap" "secret" (not (empty .Values.caBundle.configMapName)) }}:
          name: {{ .Values.caBundle.configMapName | default .Values.caBundle.secretName }}
          items: [{key: {{ .Values.caBundle.key }}, path: ca.pem}]
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- end }}
