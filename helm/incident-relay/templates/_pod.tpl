{{/* The relay's pod, whatever its journal: the StatefulSet of one and the Deployment of many hold the same. */}}

{{- define "incident-relay.podTemplate" -}}
metadata:
  labels:
    {{- include "incident-relay.selectorLabels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: relay
    # The configuration is read at start: a change of it has to make a new pod.
    checksum/configuration: {{ include "incident-relay.configuration" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "incident-relay.serviceAccountName" . }}
  automountServiceAccountToken: false
  # A release called relay would fill the environment with RELAY_….
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "incident-relay.graceSeconds" . }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- if .Values.configCheck.enabled }}
  initContainers:
    - name: check
      image: {{ include "incident-relay.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [check, --offline]
      env:
        {{- include "incident-relay.env" . | nindent 8 }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      # What it says is then the pod's last state, for kubectl describe.
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "incident-relay.volumeMounts" . | nindent 8 }}
  {{- end }}
  containers:
    - name: relay
      image: {{ include "incident-relay.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [run]
      env:
        {{- include "incident-relay.env" . | nindent 8 }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: {{ include "incident-relay.httpPort" . }}
      startupProbe:
        httpGet: {path: /livez, port: http}
        {{- toYaml .Values.startupProbe | nindent 8 }}
      livenessProbe:
        httpGet: {path: /livez, port: http}
        {{- toYaml .Values.livenessProbe | nindent 8 }}
      readinessProbe:
        httpGet: {path: /readyz, port: http}
        {{- toYaml .Values.readinessProbe | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        {{- include "incident-relay.volumeMounts" . | nindent 8 }}
  volumes:
    {{- include "incident-relay.volumes" . | nindent 4 }}
    {{- if include "incident-relay.onKafka" . }}
    - name: cache
      emptyDir:
        sizeLimit: {{ .Values.cache.sizeLimit }}
    {{- else if not .Values.persistence.enabled }}
    - name: journal
      emptyDir:
        sizeLimit: {{ .Values.persistence.size }}
    {{- else if .Values.persistence.existingClaim }}
    - name: journal
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- else if include "incident-relay.onKafka" . }}
  # Rather on different nodes; on one, where there is no other. Counted apart from the pods of another version.
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      matchLabelKeys: [pod-template-hash]
      labelSelector:
        matchLabels:
          {{- include "incident-relay.selectorLabels" . | nindent 10 }}
  {{- end }}
{{- end }}
